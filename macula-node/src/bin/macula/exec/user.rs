//! The user that a command runs as.

use std::fs;

/// A user and its group, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl User {
    /// The user of this name or number in `/etc/passwd`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        find(&fs::read_to_string("/etc/passwd").unwrap_or_default(), name)
    }
}

/// Each line is `NAME:PASSWORD:UID:GID:…`.
fn find(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let known = fields.next()?;
        let (uid, gid) = (fields.nth(1)?, fields.next()?);
        let user = User {
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
        };
        (known == name || uid == name).then_some(user)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n\nbroken\nweb:x:33:34::/srv:/bin/false\n";
        let web = Some(User { uid: 33, gid: 34 });
        assert_eq!((find(passwd, "web"), find(passwd, "33")), (web, web));
        assert_eq!(find(passwd, "0"), Some(User { uid: 0, gid: 0 }));
        assert_eq!((find(passwd, "no"), find(passwd, "34")), (None, None));
    }
}
