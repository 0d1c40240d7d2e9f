//! Bit packing, lowest bit first: the packed bytes are one little-endian number.

/// Appends values of any width up to 32 bits to a byte vector.
#[derive(Debug)]
pub(crate) struct BitWriter<'a> {
    bytes: &'a mut Vec<u8>,
    held: u64,
    n_held: u32,
}

impl<'a> BitWriter<'a> {
    pub(crate) fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self::resume(bytes, 0, 0)
    }

    /// Goes on after the bits that another writer was left with.
    pub(crate) fn resume(bytes: &'a mut Vec<u8>, held: u8, n_held: u32) -> Self {
        Self { bytes, held: held.into(), n_held }
    }

    /// The bits that fill no byte, and how many they are.
    pub(crate) fn rest(self) -> (u8, u32) {
        (self.held.to_le_bytes()[0], self.n_held)
    }

    /// Appends the low `n_bits` bits; the value must have no others.
    pub(crate) fn put(&mut self, value: u32, n_bits: u32) {
        // At most 7 bits are held between calls, so 7 + 32 fit.
        self.held |= u64::from(value) << self.n_held;
        self.n_held += n_bits;
        while self.n_held >= 8 {
            self.bytes.push(self.held.to_le_bytes()[0]);
            self.held >>= 8;
            self.n_held -= 8;
        }
    }

    /// Fills the last byte with zeros.
    pub(crate) fn finish(self) {
        if self.n_held > 0 {
            self.bytes.push(self.held.to_le_bytes()[0]);
        }
    }
}

/// Takes values back out of packed bytes.
#[derive(Debug)]
pub(crate) struct BitReader<'a> {
    bytes: std::slice::Iter<'a, u8>,
    held: u64,
    n_held: u32,
}

impl<'a> BitReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self::resume(bytes, 0, 0)
    }

    /// Goes on after the bits that another reader was left with.
    pub(crate) fn resume(bytes: &'a [u8], held: u8, n_held: u32) -> Self {
        Self { bytes: bytes.iter(), held: held.into(), n_held }
    }

    /// The bits of the last byte that were not taken, and how many they are.
    pub(crate) fn rest(self) -> (u8, u32) {
        (self.held.to_le_bytes()[0], self.n_held)
    }

    /// The next `n_bits` bits, at most 32; beyond the last byte there are zeros.
    pub(crate) fn take(&mut self, n_bits: u32) -> u32 {
        while self.n_held < n_bits {
            let byte = self.bytes.next().copied().unwrap_or(0);
            self.held |= u64::from(byte) << self.n_held;
            self.n_held += 8;
        }
        let value = self.held & ((1 << n_bits) - 1);
        self.held >>= n_bits;
        self.n_held -= n_bits;
        // Masked to at most 32 bits above.
        value as u32
    }

    /// What is left in the last byte.
    pub(crate) fn padding(self) -> u64 {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values() -> impl Strategy<Value = Vec<(u32, u32)>> {
        let value = (0..=32u32).prop_flat_map(|n| {
            let max = ((1u64 << n) - 1) as u32;
            (0..=max, Just(n))
        });
        proptest::collection::vec(value, 0..200)
    }

    proptest! {
        #[test]
        fn packing_is_one_little_endian_number(values in values()) {
            let mut bytes = Vec::new();
            let mut writer = BitWriter::new(&mut bytes);
            let mut expected = Vec::new();
            for &(value, n_bits) in &values {
                writer.put(value, n_bits);
                expected.extend((0..n_bits).map(|bit| value >> bit & 1 == 1));
            }
            writer.finish();
            prop_assert_eq!(bytes.len(), expected.len().div_ceil(8));
            for (bit_idx, &bit) in expected.iter().enumerate() {
                prop_assert_eq!(bytes[bit_idx / 8] >> (bit_idx % 8) & 1 == 1, bit, "bit {}", bit_idx);
            }
            let mut reader = BitReader::new(&bytes);
            for &(value, n_bits) in &values {
                prop_assert_eq!(reader.take(n_bits), value);
            }
            prop_assert_eq!(reader.padding(), 0);
        }
    }
}
