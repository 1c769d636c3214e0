//! A second decoder of percent-encoding, which the project's own are compared with.

/// Text without its percent-encoding. `plus`: the byte that `+` stands for. An incomplete
/// escape stands for itself.
pub fn decoded(text: &[u8], plus: u8) -> Vec<u8> {
    let digit = |at: usize| char::from(*text.get(at)?).to_digit(16);
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < text.len() {
        match (text[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).expect("two digits"));
                at += 2;
            }
            (b'+', ..) => decoded.push(plus),
            (byte, ..) => decoded.push(byte),
        }
        at += 1;
    }
    decoded
}
