//! Reads a request line for the monitor, until a deadline.

use std::io::{self, BufRead, BufReader};
use std::net::TcpStream;
use std::time::Instant;

/// Reads a line including its end. Stops without a line end after `max` bytes or at the end of input.
pub(super) fn read_line(
    reader: &mut BufReader<&TcpStream>,
    max: usize,
    deadline: Instant,
) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while line.len() < max && !line.ends_with(b"\n") {
        if reader.buffer().is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            reader.get_ref().set_read_timeout(Some(left))?;
        }
        let input = reader.fill_buf()?;
        if input.is_empty() {
            break;
        }
        let end = input.iter().position(|&byte| byte == b'\n');
        let count = end.map_or(input.len(), |end| end + 1).min(max - line.len());
        line.extend_from_slice(&input[..count]);
        reader.consume(count);
    }
    Ok(line)
}
