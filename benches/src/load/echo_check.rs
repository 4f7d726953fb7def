//! Whether a stream of replies is what a right server sends.

use anyhow::{Result, ensure};

use super::Pattern;
use crate::peers::{CHUNK, PREFIX};

/// Follows the replies on one connection: chunks of 1 to [`CHUNK`] bytes, each behind the
/// prefix, whose bytes together are the pattern.
pub struct EchoCheck {
    /// How many bytes of the pattern have come back.
    position: u64,
    /// How many bytes of the current chunk's prefix have been seen.
    prefix: usize,
    /// How many bytes of the current chunk have been seen behind its prefix.
    chunk: usize,
}

impl EchoCheck {
    /// A check of replies to the pattern from `position` on.
    pub fn from(position: u64) -> Self {
        Self {
            position,
            prefix: 0,
            chunk: 0,
        }
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    /// Checks the next bytes of the stream, and says how many of them were payload.
    pub fn feed(&mut self, pattern: &Pattern, mut data: &[u8]) -> Result<usize> {
        let mut payload = 0;
        while !data.is_empty() {
            if self.prefix < PREFIX.len() {
                let count = data.len().min(PREFIX.len() - self.prefix);
                ensure!(
                    data[..count] == PREFIX[self.prefix..self.prefix + count],
                    "wrong reply: no prefix where a chunk begins"
                );
                self.prefix += count;
                data = &data[count..];
                continue;
            }

            // The pattern holds no byte of the prefix, so the chunk ends where one occurs.
            let count = memchr::memchr(PREFIX[0], data).unwrap_or(data.len());
            self.chunk += count;
            ensure!(
                (1..=CHUNK).contains(&self.chunk),
                "wrong reply: a chunk of {} bytes",
                self.chunk
            );
            // In parts, because the pattern gives slices of a limited length.
            for part in data[..count].chunks(CHUNK) {
                ensure!(
                    part == pattern.at(self.position, part.len()),
                    "wrong reply: other bytes than were sent"
                );
                self.position += part.len() as u64;
            }
            payload += count;
            if count < data.len() {
                self.expect_prefix();
            }
            data = &data[count..];
        }
        Ok(payload)
    }

    /// Ends a message whose bytes have all come back: a new chunk has to begin, with nothing
    /// left over of this one. Returns the length of the message's last chunk.
    pub fn end_message(&mut self) -> Result<usize> {
        ensure!(
            self.prefix == PREFIX.len() && self.chunk > 0,
            "wrong reply: more than the message"
        );
        let chunk = self.chunk;
        self.expect_prefix();
        Ok(chunk)
    }

    fn expect_prefix(&mut self) {
        self.prefix = 0;
        self.chunk = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reply to `chunks` bytes of the pattern.
    fn reply(pattern: &Pattern, chunks: &[usize]) -> Vec<u8> {
        let mut position = 0;
        let mut bytes = Vec::new();
        for &chunk in chunks {
            bytes.extend_from_slice(PREFIX);
            bytes.extend_from_slice(pattern.at(position, chunk));
            position += chunk as u64;
        }
        bytes
    }

    fn check(reply: &[u8], step: usize) -> Result<usize> {
        let pattern = Pattern::new();
        let mut check = EchoCheck::from(0);
        let mut payload = 0;
        for part in reply.chunks(step) {
            payload += check.feed(&pattern, part)?;
        }
        check.end_message()?;
        Ok(payload)
    }

    #[test]
    fn right_replies_pass_however_they_are_cut() {
        let right = reply(&Pattern::new(), &[64, 1, CHUNK, 3000]);
        for step in [1, 2, 7, 69, 4096, right.len()] {
            assert_eq!(check(&right, step).unwrap(), 64 + 1 + CHUNK + 3000);
        }
    }

    #[test]
    fn wrong_replies_fail() {
        let pattern = Pattern::new();
        let right = reply(&pattern, &[64, 64]);
        let mut flipped = right.clone();
        flipped[100] ^= 1;
        let no_second_prefix = [&right[..69], &right[74..]].concat();
        let swapped = [&right[69..], &right[..69]].concat();
        let doubled_prefix = [PREFIX, &right].concat();
        let trailing_prefix = [&right, PREFIX].concat();
        let too_long = reply(&pattern, &[CHUNK + 1]);
        // Two chunks whose second prefix is missing pass as one chunk, which a server may send
        // where both were there to be read at once; all the others are wrong.
        assert!(check(&no_second_prefix, 4096).is_ok());
        for wrong in [flipped, swapped, doubled_prefix, trailing_prefix, too_long] {
            for step in [1, 64, 20_000] {
                assert!(check(&wrong, step).is_err());
            }
        }
    }
}
