//! The values of `--serve` and `--service`: a name with echo or a command, and the settings of it.

use std::{path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use macula_node::{Bytes, Handler, Limited, MAX_MESSAGE_BYTES, NameError, Request, ServiceName, Status};

use crate::exec::{Environment, Exec, Process, User};

/// The commands that one service runs at a time, when it is not told otherwise.
const MAX_COMMANDS: usize = 64;

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

/// A setting of a service: `NAME:KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) service: ServiceName,
    pub(crate) rule: Rule,
}

/// A rule for the calls of a service. All but the first are for commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rule {
    Concurrency(usize),
    Timeout(Duration),
    Output(usize),
    User(User),
    Folder(PathBuf),
    Env(String),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SettingError {
    #[error("write a setting as `NAME:KEY=VALUE`, where KEY is concurrency, timeout, output, user, folder or env")]
    Form,
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("{0} is a number from 1 to {1}")]
    Number(&'static str, usize),
    #[error("timeout: {0}")]
    Time(String),
    #[error("there is no user `{0}` on this machine; write a name from /etc/passwd or a number")]
    User(String),
}

impl FromStr for Setting {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        let (name, rest) = text.split_once(':').ok_or(SettingError::Form)?;
        let (key, value) = rest.split_once('=').ok_or(SettingError::Form)?;
        let number = |key, max| match value.parse() {
            Ok(number) if (1..=max).contains(&number) => Ok(number),
            _ => Err(SettingError::Number(key, max)),
        };
        let rule = match key {
            "concurrency" => Rule::Concurrency(number("concurrency", 65_536)?),
            "timeout" => Rule::Timeout(crate::args::duration(value).map_err(SettingError::Time)?),
            "output" => Rule::Output(number("output", MAX_MESSAGE_BYTES)?),
            "user" => Rule::User(User::named(value).ok_or_else(|| SettingError::User(value.to_owned()))?),
            "folder" => Rule::Folder(value.into()),
            "env" => Rule::Env(value.to_owned()),
            _ => return Err(SettingError::Form),
        };
        Ok(Self {
            service: ServiceName::new(name)?,
            rule,
        })
    }
}

impl Serve {
    /// The handler of this service by those of the settings that are its own.
    pub(crate) fn handler(&self, settings: &[Setting], environment: &Arc<Environment>) -> impl Handler + use<> {
        let mut process = Process::default();
        let mut environment = Arc::clone(environment);
        let mut concurrency = match self.kind {
            Kind::Echo => usize::MAX,
            Kind::Exec(_) => MAX_COMMANDS,
        };
        let own = settings.iter().filter(|setting| setting.service == self.name);
        for setting in own {
            match &setting.rule {
                Rule::Concurrency(calls) => concurrency = *calls,
                Rule::Timeout(time) => process.timeout = Some(*time),
                Rule::Output(bytes) => process.max_output = *bytes,
                Rule::User(user) => process.user = Some(*user),
                Rule::Folder(folder) => process.folder = Some(folder.clone()),
                Rule::Env(variable) => environment = Arc::new(environment.with(variable)),
            }
        }
        let exec = match &self.kind {
            Kind::Echo => None,
            Kind::Exec(command) => Some(Exec::new(command, &environment, process)),
        };
        Limited::new(concurrency, move |request: Request| {
            let exec = exec.clone();
            async move {
                match exec {
                    None => Ok::<_, Status>(request.into_payload()),
                    Some(exec) => exec.call(request).await.map(Bytes::from),
                }
            }
        })
    }

    /// Why one of the settings is none for this service.
    pub(crate) fn misfit(&self, settings: &[Setting]) -> Option<String> {
        let own = settings.iter().filter(|setting| setting.service == self.name);
        let is_wrong = |setting: &&Setting| self.kind == Kind::Echo && !matches!(setting.rule, Rule::Concurrency(_));
        own.filter(is_wrong)
            .map(|_| format!("{} runs no command, so only its concurrency can be set", self.name))
            .next()
    }
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

    #[test]
    fn settings_are_read_with_their_kind_and_bounds() {
        let rule = |text: &str| text.parse::<Setting>().map(|setting| setting.rule);
        assert_eq!(rule("a.b:concurrency=4"), Ok(Rule::Concurrency(4)));
        assert_eq!(rule("a:timeout=500ms"), Ok(Rule::Timeout(Duration::from_millis(500))));
        assert_eq!(rule("a:output=1024"), Ok(Rule::Output(1024)));
        assert_eq!(rule("a:env=A=1:2"), Ok(Rule::Env("A=1:2".to_owned())));
        assert_eq!(rule("a:folder=/srv"), Ok(Rule::Folder("/srv".into())));
        for form in ["a", "a:b", "a:colour=red", "concurrency=4"] {
            assert_eq!(rule(form), Err(SettingError::Form), "{form}");
        }
        for number in ["a:concurrency=0", "a:output=99999999999", "a:concurrency=x"] {
            assert!(matches!(rule(number), Err(SettingError::Number(..))), "{number}");
        }
        assert!(matches!(rule("a:user=no-such-user"), Err(SettingError::User(_))));
    }
}
