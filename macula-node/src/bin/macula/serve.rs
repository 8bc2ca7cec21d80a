//! The values of `--serve` and `--service`: a service with what answers its calls, and the settings of it.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use futures::{Stream, stream};
use macula_node::{
    Bytes, Limited, MAX_MESSAGE_BYTES, NameError, Node, NodeBuilder, Request, Requests, ServiceName, ServiceOptions,
    Status,
};
use tonic::codegen::http::uri::{Authority, Uri};

use crate::{
    backend::Http,
    exec::{Environment, Exec, Process, User},
};

/// The commands that one service runs at a time, when it is not told otherwise.
const MAX_COMMANDS: usize = 64;
/// The requests that one service has at its HTTP server at a time, when it is not told otherwise.
const MAX_REQUESTS: usize = 256;

/// A service and its handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Serve {
    /// Without one, the services are those that a gRPC server names.
    pub(crate) name: Option<ServiceName>,
    pub(crate) kind: Kind,
}

/// What answers the calls of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Echo,
    /// An echo that waits before it gives back a message.
    SlowEcho(Duration),
    /// A command for each call.
    Exec(String),
    /// A gRPC server beside the node.
    Grpc(Authority),
    /// An HTTP server beside the node.
    Http(Uri),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ServeError {
    #[error(
        "write a service as `NAME=echo`, `NAME=echo:TIME`, `NAME=exec:COMMAND`, `NAME=http://HOST:PORT/PATH`, `NAME=grpc://HOST:PORT`, or `grpc://HOST:PORT` for every service of a gRPC server"
    )]
    Form,
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FromStr for Serve {
    type Err = ServeError;

    fn from_str(text: &str) -> Result<Self, ServeError> {
        let grpc = |at: &str| {
            let at = at.parse::<Authority>().ok().filter(|at| at.port().is_some());
            at.map(Kind::Grpc).ok_or(ServeError::Form)
        };
        if let Some(at) = text.strip_prefix("grpc://") {
            return Ok(Self {
                name: None,
                kind: grpc(at)?,
            });
        }
        let (name, kind) = text.split_once('=').ok_or(ServeError::Form)?;
        let kind = match kind.split_once(':') {
            None if kind == "echo" => Kind::Echo,
            Some(("echo", time)) => Kind::SlowEcho(crate::args::duration(time).map_err(|_| ServeError::Form)?),
            Some(("exec", command)) if !command.trim().is_empty() => Kind::Exec(command.to_owned()),
            Some(("grpc", at)) => grpc(at.strip_prefix("//").ok_or(ServeError::Form)?)?,
            Some(("http", _)) => Kind::Http(kind.parse().map_err(|_| ServeError::Form)?),
            _ => return Err(ServeError::Form),
        };
        Ok(Self {
            name: Some(ServiceName::new(name)?),
            kind,
        })
    }
}

/// The name, or the server whose services it stands for.
impl fmt::Display for Serve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, &self.kind) {
            (Some(name), _) => name.fmt(f),
            (None, Kind::Grpc(at)) => write!(f, "grpc://{at}"),
            (None, kind) => write!(f, "{kind:?}"),
        }
    }
}

/// A setting of a service: `NAME:KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) service: ServiceName,
    pub(crate) rule: Rule,
}

/// A rule for the calls of a service. All but the first two are for commands.
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
    /// Has it served from the node's start. The services of gRPC servers are served when they are found.
    pub(crate) fn add_to(
        &self,
        builder: NodeBuilder,
        settings: &[Setting],
        environment: &Arc<Environment>,
    ) -> NodeBuilder {
        let Some(name) = self.name.clone() else {
            return builder;
        };
        let calls = self.concurrency(settings);
        let builder = builder.configure(name.clone(), self.options(settings));
        match &self.kind {
            Kind::Echo => builder.serve(name, Limited::new(calls, echo)),
            &Kind::SlowEcho(time) => {
                let handler = move |request| slow_echo(time, request);
                builder.serve_streaming(name, Limited::new(calls, handler))
            }
            Kind::Exec(command) => {
                let exec = self.exec(command, settings, environment);
                builder.serve(name, Limited::new(calls, move |request| run(exec.clone(), request)))
            }
            Kind::Http(at) => builder.serve_streaming(name, Limited::new(calls, Http::new(at.clone()))),
            Kind::Grpc(_) => builder,
        }
    }

    /// Has it served by a node that runs, with the same exception.
    pub(crate) async fn serve_at(
        &self,
        node: &Node,
        settings: &[Setting],
        environment: &Arc<Environment>,
    ) -> Result<(), macula_node::ServeError> {
        let Some(name) = self.name.clone() else {
            return Ok(());
        };
        let calls = self.concurrency(settings);
        node.configure(name.clone(), self.options(settings));
        match &self.kind {
            Kind::Echo => node.serve(name, Limited::new(calls, echo)).await?,
            &Kind::SlowEcho(time) => {
                let handler = move |request| slow_echo(time, request);
                node.serve_streaming(name, Limited::new(calls, handler)).await?
            }
            Kind::Exec(command) => {
                let exec = self.exec(command, settings, environment);
                let handler = move |request| run(exec.clone(), request);
                node.serve(name, Limited::new(calls, handler)).await?
            }
            Kind::Http(at) => {
                let handler = Limited::new(calls, Http::new(at.clone()));
                node.serve_streaming(name, handler).await?
            }
            Kind::Grpc(_) => return Ok(()),
        };
        Ok(())
    }

    /// This service's settings.
    fn own<'a>(&self, settings: &'a [Setting]) -> impl Iterator<Item = &'a Rule> + use<'a, '_> {
        let own = settings
            .iter()
            .filter(|setting| Some(&setting.service) == self.name.as_ref());
        own.map(|setting| &setting.rule)
    }

    /// The calls that it runs at a time at most.
    fn concurrency(&self, settings: &[Setting]) -> usize {
        let set = self.own(settings).filter_map(|rule| match rule {
            Rule::Concurrency(calls) => Some(*calls),
            _ => None,
        });
        set.last().unwrap_or(match self.kind {
            Kind::Echo | Kind::SlowEcho(_) | Kind::Grpc(_) => usize::MAX,
            Kind::Exec(_) => MAX_COMMANDS,
            Kind::Http(_) => MAX_REQUESTS,
        })
    }

    /// The longest time of its calls. A command has its own, because its group is killed when it is over.
    fn options(&self, settings: &[Setting]) -> ServiceOptions {
        let times = self.own(settings).filter_map(|rule| match rule {
            Rule::Timeout(time) if !matches!(self.kind, Kind::Exec(_)) => Some(*time),
            _ => None,
        });
        times.fold(ServiceOptions::new(), ServiceOptions::max_time)
    }

    fn exec(&self, command: &str, settings: &[Setting], environment: &Arc<Environment>) -> Exec {
        let mut process = Process::default();
        let mut environment = Arc::clone(environment);
        for rule in self.own(settings) {
            match rule {
                Rule::Concurrency(_) => {}
                Rule::Timeout(time) => process.timeout = Some(*time),
                Rule::Output(bytes) => process.max_output = *bytes,
                Rule::User(user) => process.user = Some(*user),
                Rule::Folder(folder) => process.folder = Some(folder.clone()),
                Rule::Env(variable) => environment = Arc::new(environment.with(variable)),
            }
        }
        Exec::new(command, &environment, process)
    }

    /// The first setting that this service cannot have.
    pub(crate) fn misfit(&self, settings: &[Setting]) -> Option<String> {
        let fits = |rule: &Rule| match self.kind {
            Kind::Exec(_) => true,
            Kind::Echo | Kind::SlowEcho(_) | Kind::Http(_) => matches!(rule, Rule::Concurrency(_) | Rule::Timeout(_)),
            Kind::Grpc(_) => matches!(rule, Rule::Timeout(_)),
        };
        let why = match self.kind {
            Kind::Grpc(_) => "is a gRPC server's, so only its timeout can be set",
            _ => "runs no command, so only its concurrency and timeout can be set",
        };
        let wrong = self.own(settings).find(|rule| !fits(rule));
        wrong.map(|_| format!("{self} {why}"))
    }
}

async fn echo(request: Request) -> Result<Bytes, Status> {
    Ok(request.into_payload())
}

/// Gives back each message of the call after `time`.
async fn slow_echo(
    time: Duration,
    request: Request<Requests>,
) -> Result<impl Stream<Item = Result<Bytes, Status>>, Status> {
    let requests = request.into_payload();
    Ok(stream::try_unfold(requests, move |mut requests| async move {
        let Some(message) = requests.next().await? else {
            return Ok(None);
        };
        tokio::time::sleep(time).await;
        Ok(Some((message, requests)))
    }))
}

async fn run(exec: Exec, request: Request) -> Result<Bytes, Status> {
    exec.call(request).await.map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_read_with_their_kind() {
        let serve = |text: &str| text.parse::<Serve>();
        assert_eq!(serve("a.b=echo").unwrap().kind, Kind::Echo);
        assert_eq!(
            serve("a.b=echo:300ms").unwrap().kind,
            Kind::SlowEcho(Duration::from_millis(300))
        );
        assert_eq!(
            serve("up=exec:tr a-z A-Z").unwrap().kind,
            Kind::Exec("tr a-z A-Z".into())
        );
        assert_eq!(serve("x=exec:a=b").unwrap().kind, Kind::Exec("a=b".into()));
        let all = serve("grpc://127.0.0.1:50051").unwrap();
        assert_eq!(
            (all.name.clone(), all.to_string().as_str()),
            (None, "grpc://127.0.0.1:50051")
        );
        let one = serve("shop.Cart=grpc://cart:50051").unwrap();
        assert_eq!(
            (one.kind, one.name.unwrap().as_str()),
            (Kind::Grpc("cart:50051".parse().unwrap()), "shop.Cart")
        );
        let web = serve("web.page=http://127.0.0.1:8080/page?x=1").unwrap();
        assert!(matches!(web.kind, Kind::Http(at) if at.path() == "/page"));
        for bad in [
            "echo",
            "a=",
            "a=Echo",
            "a=echo:",
            "a=echo:soon",
            "a=exec:",
            "a=exec: ",
            "grpc://host",
            "a=grpc:host:1",
            "a=grpc://host",
            "a=http://",
            "a=https://host/",
        ] {
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
