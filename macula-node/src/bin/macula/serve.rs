//! The values of `--serve`: a name, and echo or a command.

use std::str::FromStr;

use macula_node::{NameError, Request, ServiceName, Status};

/// A service and its handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Serve {
    pub(crate) name: ServiceName,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Echo,
    Exec(String),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("write a service as `NAME=echo` or `NAME=exec:COMMAND`")]
    Form,
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FromStr for Serve {
    type Err = ServeError;

    fn from_str(text: &str) -> Result<Self, ServeError> {
        let (name, kind) = text.split_once('=').ok_or(ServeError::Form)?;
        let kind = match (kind, kind.strip_prefix("exec:")) {
            ("echo", _) => Kind::Echo,
            (_, Some(command)) if !command.trim().is_empty() => Kind::Exec(command.to_owned()),
            _ => return Err(ServeError::Form),
        };
        Ok(Self {
            name: ServiceName::new(name)?,
            kind,
        })
    }
}

/// Answers with the request.
pub(crate) async fn echo(request: Request) -> Result<macula_node::Bytes, Status> {
    Ok(request.into_payload())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_read_with_their_kind() {
        let serve = |text: &str| text.parse::<Serve>();
        assert_eq!(serve("a.b=echo").unwrap().kind, Kind::Echo);
        assert_eq!(
            serve("up=exec:tr a-z A-Z").unwrap().kind,
            Kind::Exec("tr a-z A-Z".into())
        );
        assert_eq!(serve("x=exec:a=b").unwrap().kind, Kind::Exec("a=b".into()));
        for bad in ["echo", "a=", "a=Echo", "a=exec:", "a=exec: "] {
            assert_eq!(serve(bad), Err(ServeError::Form), "{bad} was taken");
        }
        assert!(matches!(serve("a b=echo"), Err(ServeError::Name(_))));
    }
}
