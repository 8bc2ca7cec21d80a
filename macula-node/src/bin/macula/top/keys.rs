//! Keys as they are pressed.
//!
//! **Invariant.** The terminal's settings are put back when this is dropped.

use std::io::IsTerminal as _;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::io::AsyncReadExt as _;

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Press {
    Letter(char),
    Back,
    Enter,
    Escape,
    Quit,
}

/// The keyboard of a terminal in raw mode.
#[derive(Debug)]
pub(super) struct Keys {
    before: Termios,
    stdin: tokio::io::Stdin,
    typing: bool,
}

impl Keys {
    /// The keyboard; `None` when standard input or output is no terminal.
    pub(super) fn of_terminal() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() || !std::io::stdout().is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self {
            before,
            stdin: tokio::io::stdin(),
            typing: false,
        })
    }

    /// The next key that means something. Cancel safe.
    pub(super) async fn next(&mut self) -> Press {
        let mut byte = [0];
        loop {
            match self.stdin.read(&mut byte).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Press::Quit,
            }
            if let Some(press) = read(byte[0], self.typing) {
                self.typing = match press {
                    Press::Letter('/') => true,
                    Press::Enter | Press::Escape => false,
                    Press::Letter(_) | Press::Back | Press::Quit => self.typing,
                };
                return press;
            }
        }
    }
}

/// The key of a byte. While a filter is typed, `q` is a letter.
fn read(byte: u8, typing: bool) -> Option<Press> {
    Some(match byte {
        // Raw mode sends no signal for Control-C and Control-D.
        3 | 4 => Press::Quit,
        b'q' if !typing => Press::Quit,
        b'\r' | b'\n' => Press::Enter,
        8 | 127 => Press::Back,
        0x1b => Press::Escape,
        b' '..=b'~' => Press::Letter(char::from(byte)),
        _ => return None,
    })
}

impl Drop for Keys {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_ends_the_view_unless_it_is_typed_into_the_filter() {
        assert_eq!(read(b'q', false), Some(Press::Quit));
        assert_eq!(read(b'q', true), Some(Press::Letter('q')));
        assert_eq!([3, 4].map(|byte| read(byte, true)), [Some(Press::Quit); 2]);
        assert_eq!(
            [127, 13, 27].map(|byte| read(byte, true)),
            [Press::Back, Press::Enter, Press::Escape].map(Some)
        );
        assert_eq!(read(0xc3, false), None);
    }
}
