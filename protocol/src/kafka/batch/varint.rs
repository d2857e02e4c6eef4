//! Zigzag varints (`varint` and `varlong` of the record format).

/// Most bytes of a 64-bit varint.
pub(super) const MAX_LEN: usize = 10;

#[inline]
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// Bytes that [`put`] writes for `value`.
#[inline]
pub(super) fn len(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Appends `value`.
#[inline]
pub(super) fn put(buf: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        buf.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    buf.push(rest as u8);
}

/// Reads a varint of at most 64 bits and moves `input` behind it. `None`: cut off or too long.
#[inline]
pub(super) fn take_long(input: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for (position, &byte) in input.iter().enumerate().take(MAX_LEN) {
        let bits = u64::from(byte & 0x7f);
        if position == MAX_LEN - 1 && bits > 1 {
            return None;
        }
        value |= bits << (7 * position);
        if byte < 0x80 {
            *input = input.get(position + 1..)?;
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

/// Reads a varint of at most 32 bits and moves `input` behind it. `None`: cut off or too long.
#[inline]
pub(super) fn take(input: &mut &[u8]) -> Option<i32> {
    let mut rest = *input;
    let value = take_long(&mut rest)?;
    if input.len() - rest.len() > 5 {
        return None;
    }
    let value = i32::try_from(value).ok()?;
    *input = rest;
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_is_read_back_with_the_length_that_was_promised() {
        let mut values = vec![0, i64::MIN, i64::MAX, i64::from(i32::MIN), i64::from(i32::MAX)];
        for shift in 0..63 {
            for near in -1..=1 {
                values.push((1i64 << shift) + near);
                values.push(-(1i64 << shift) + near);
            }
        }
        for value in values {
            let mut buf = Vec::new();
            put(&mut buf, value);
            assert_eq!(buf.len(), len(value), "{value}");
            let mut rest = buf.as_slice();
            assert_eq!(take_long(&mut rest), Some(value));
            assert!(rest.is_empty());
            let mut rest = buf.as_slice();
            assert_eq!(take(&mut rest), i32::try_from(value).ok(), "{value}");
            let cut = &buf[..buf.len() - 1];
            assert_eq!(take_long(&mut &*cut), None);
        }
    }

    #[test]
    fn a_varint_that_never_ends_is_refused() {
        assert_eq!(take_long(&mut [0x80u8; 64].as_slice()), None);
        assert_eq!(take_long(&mut [0xffu8; 10].as_slice()), None);
        let eleven_bits_too_many = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert_eq!(take_long(&mut eleven_bits_too_many.as_slice()), None);
        assert_eq!(take(&mut [0x80, 0x80, 0x80, 0x80, 0x80, 0x00].as_slice()), None);
    }
}
