//! What the load generator sends.

/// A prime, so that bytes which come back at a wrong place are wrong bytes: no chunk size
/// divides it.
const PERIOD: usize = 65_521;

/// The longest slice that [`Pattern::at`] gives.
const LONGEST: usize = 256 * 1024;

/// An endless stream of bytes that look random and all have their highest bit set, so that no
/// byte of the prefix, which is ASCII, occurs in it.
pub struct Pattern {
    bytes: Vec<u8>,
}

impl Pattern {
    pub fn new() -> Self {
        // Marsaglia's xorshift: the same bytes in each run.
        let mut state: u32 = 2_463_534_242;
        let mut bytes: Vec<u8> = (0..PERIOD)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                state as u8 | 0x80
            })
            .collect();
        // Repeated, so that a slice from any place in the period needs no wrapping around.
        for index in 0..LONGEST {
            bytes.push(bytes[index]);
        }
        Self { bytes }
    }

    /// The `length` bytes from `position` on.
    pub fn at(&self, position: u64, length: usize) -> &[u8] {
        let start = (position % PERIOD as u64) as usize;
        &self.bytes[start..start + length]
    }
}
