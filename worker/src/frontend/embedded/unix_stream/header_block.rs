//! HPACK (RFC 7541), as far as it takes to find authorities in a header block.
//!
//! What replaces an authority has as many characters, because the table of fields that both ends keep counts them.

/// What stands in for each character.
const STAND_IN: u8 = b'x';
/// `:authority` in the static table (RFC 7541, appendix A).
const AUTHORITY_INDEX: usize = 1;
const AUTHORITY: &[u8] = b":authority";
/// The same in the Huffman code.
const AUTHORITY_CODED: &[u8] = b"\xb8\x3b\x53\x39\xec\x32\x7d\x7f";
/// How many symbols have a code of so many bits (RFC 7541, appendix B). The code is canonical: no more is needed to
/// tell where one ends.
const CODES: [u32; 31] =
    [0, 0, 0, 0, 0, 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19, 29, 0, 4];

/// A header block with other authorities; nothing if it has none.
///
/// Whatever follows something that cannot be read stays as it is.
pub(super) fn rewritten(block: &[u8]) -> Option<Vec<u8>> {
    let mut written = Vec::with_capacity(block.len());
    let mut has_authority = false;
    let mut rest = block;
    while let Some(field) = Field::read(rest) {
        match field.authority {
            None => written.extend_from_slice(&rest[..field.bytes]),
            Some(Authority { begin, characters }) => {
                has_authority = true;
                written.extend_from_slice(&rest[..begin]);
                write_string(&mut written, characters);
            }
        }
        rest = &rest[field.bytes..];
    }
    written.extend_from_slice(rest);
    has_authority.then_some(written)
}

/// The representation of one field.
struct Field {
    bytes: usize,
    authority: Option<Authority>,
}

/// The value of an authority that is not in the table yet.
struct Authority {
    /// Where it begins.
    begin: usize,
    characters: usize,
}

impl Field {
    fn read(block: &[u8]) -> Option<Self> {
        let (prefix_bits, is_literal) = match block.first()? {
            0x80.. => (7, false),
            0x40.. => (6, true),
            // The size of the table.
            0x20.. => (5, false),
            _ => (4, true),
        };
        let (index, mut begin) = integer(block, prefix_bits)?;
        if !is_literal {
            return Some(Self { bytes: begin, authority: None });
        }
        let mut is_authority = index == AUTHORITY_INDEX;
        if index == 0 {
            let name = Text::read(&block[begin..])?;
            is_authority = name.content == if name.is_coded { AUTHORITY_CODED } else { AUTHORITY };
            begin += name.bytes;
        }
        let value = Text::read(&block[begin..])?;
        let authority =
            if is_authority { Some(Authority { begin, characters: value.characters()? }) } else { None };
        Some(Self { bytes: begin + value.bytes, authority })
    }
}

/// A string.
struct Text<'a> {
    bytes: usize,
    content: &'a [u8],
    is_coded: bool,
}

impl<'a> Text<'a> {
    fn read(block: &'a [u8]) -> Option<Self> {
        let (length, begin) = integer(block, 7)?;
        let bytes = begin.checked_add(length)?;
        Some(Self { bytes, content: block.get(begin..bytes)?, is_coded: block[0] & 0x80 != 0 })
    }

    fn characters(&self) -> Option<usize> {
        if self.is_coded { coded_characters(self.content) } else { Some(self.content.len()) }
    }
}

/// An integer in the low bits of the first byte and what follows (RFC 7541, section 5.1), and the bytes it takes.
fn integer(block: &[u8], prefix_bits: u32) -> Option<(usize, usize)> {
    let prefix_max = (1_u8 << prefix_bits) - 1;
    let prefix = block.first()? & prefix_max;
    let mut value = usize::from(prefix);
    if prefix < prefix_max {
        return Some((value, 1));
    }
    // No length or index of a frame needs more than three bytes.
    for (position, byte) in block.iter().enumerate().skip(1).take(3) {
        value += usize::from(byte & 0x7f) << (7 * (position - 1));
        if byte & 0x80 == 0 {
            return Some((value, position + 1));
        }
    }
    None
}

/// Writes a string of so many stand-ins.
fn write_string(to: &mut Vec<u8>, characters: usize) {
    let prefix_max = 0x7f;
    match u8::try_from(characters) {
        Ok(length) if length < prefix_max => to.push(length),
        _ => {
            to.push(prefix_max);
            let mut left = characters - usize::from(prefix_max);
            while left >= 0x80 {
                to.push(0x80 | u8::try_from(left & 0x7f).expect("seven bits"));
                left >>= 7;
            }
            to.push(u8::try_from(left).expect("seven bits"));
        }
    }
    to.resize(to.len() + characters, STAND_IN);
}

/// How many characters a string in the Huffman code has.
fn coded_characters(content: &[u8]) -> Option<usize> {
    let mut bits =
        content.iter().flat_map(|byte| (0..8).rev().map(move |shift| u32::from(byte >> shift & 1)));
    let mut characters = 0;
    loop {
        let (mut code, mut first) = (0, 0);
        let mut lengths = CODES.iter().skip(1);
        loop {
            // What is left over is padding.
            let Some(bit) = bits.next() else { return Some(characters) };
            code = code << 1 | bit;
            first <<= 1;
            let count = lengths.next()?;
            if code - first < *count {
                break;
            }
            first += count;
        }
        characters += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(digits).collect()
    }

    // RFC 7541, appendices C.4 and C.6.
    #[test]
    fn coded_strings_are_measured() {
        for (text, coded) in [
            ("", ""),
            ("www.example.com", "f1e3c2e5f23a6ba0ab90f4ff"),
            ("no-cache", "a8eb10649cbf"),
            ("custom-key", "25a849e95ba97d7f"),
            ("Mon, 21 Oct 2013 20:13:21 GMT", "d07abe941054d444a8200595040b8166e082a62d1bff"),
            ("https://www.example.com", "9d29ad171863c78f0b97c8e9ae82ae43d3"),
            (
                "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
                "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
            ),
            (":authority", "b83b5339ec327d7f"),
        ] {
            assert_eq!(coded_characters(&bytes(coded)), Some(text.len()), "{text}");
        }
        assert_eq!(CODES.iter().sum::<u32>(), 257);
    }

    // As clients write it: by its place in the static table or by its name, coded or plain, to be kept or not.
    #[test]
    fn an_authority_is_found_however_it_is_written() {
        let coded = bytes("41 8c f1e3c2e5f23a6ba0ab90f4ff".replace(' ', "").as_str());
        let named = [&b"\x40\x0a:authority\x03a/b"[..], b"\x10\x88", AUTHORITY_CODED, b"\x03a%b"].concat();
        for (block, expected) in [
            (&b"\x82\x86\x84\x01\x01/"[..], &b"\x82\x86\x84\x01\x01x"[..]),
            (&coded, b"\x41\x0fxxxxxxxxxxxxxxx"),
            (&named, &[&b"\x40\x0a:authority\x03xxx\x10\x88"[..], AUTHORITY_CODED, b"\x03xxx"].concat()),
            // What follows an integer without end cannot be read.
            (b"\x3f\xe1\x1f\x41\x00\xff\xff\xff\xff\xff", b"\x3f\xe1\x1f\x41\x00\xff\xff\xff\xff\xff"),
        ] {
            assert_eq!(rewritten(block).as_deref(), Some(expected));
        }
        assert_eq!(rewritten(b"\x82\x86\x44\x01/\x40\x05:path\x01/\xbe"), None);
    }

    #[test]
    fn a_long_one_stays_as_long() {
        for length in [126, 127, 128, 254, 255, 300, 10_000] {
            let mut block = vec![0x41];
            write_string(&mut block, length);
            let (_, text) = block.split_at(1);
            assert_eq!(Text::read(text).and_then(|text| text.characters()), Some(length));
            assert_eq!(rewritten(&block), Some(block));
        }
    }

    #[test]
    fn anything_else_is_no_panic() {
        let mut state = 1_u32;
        for length in (0..2000).map(|index| index % 40) {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            };
            let block: Vec<u8> = (0..length).map(|_| next()).collect();
            rewritten(&block);
        }
    }
}
