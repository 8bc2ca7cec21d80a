//! Questions about a service: its health and its reflection.
//!
//! Every node answers them for its own services, under the same two names, so a name of these does not tell which node is meant. The
//! question does: it names the service that it is about, and a provider of that service answers.

use bytes::Bytes;
use macula_wire::ServiceName;
use prost::Message;

/// What a service is asked about other services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// `grpc.health.v1.Health`
    Health,
    /// `grpc.reflection.v1.ServerReflection`
    Reflection,
}

/// The part of a `HealthCheckRequest` that is read here, which is all of it.
#[derive(Clone, PartialEq, Message)]
struct HealthQuestion {
    #[prost(string, tag = "1")]
    service: String,
}

/// The part of a `ServerReflectionRequest` that names a service.
#[derive(Clone, PartialEq, Message)]
struct ReflectionQuestion {
    #[prost(string, tag = "4")]
    file_containing_symbol: String,
}

/// The bytes before a message of gRPC: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

impl About {
    /// Whether a call of `service` is a question about another one.
    pub(super) fn of(service: &ServiceName) -> Option<Self> {
        match service.as_str() {
            "grpc.health.v1.Health" => Some(Self::Health),
            "grpc.reflection.v1.ServerReflection" => Some(Self::Reflection),
            _ => None,
        }
    }

    /// The services that the first question may be about, the likelier first. `first` begins with a message as gRPC sends it. A message
    /// that is compressed or cut names none.
    pub(super) fn names(self, first: &Bytes) -> impl Iterator<Item = ServiceName> + use<> {
        let message = match first.split_at_checked(PREFIX_BYTES) {
            Some(([0, length @ ..], rest)) => {
                let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
                rest.get(..length).unwrap_or_default()
            }
            _ => &[],
        };
        let symbol = match self {
            Self::Health => HealthQuestion::decode(message).map(|asked| asked.service),
            Self::Reflection => ReflectionQuestion::decode(message).map(|asked| asked.file_containing_symbol),
        };
        let symbol = symbol.unwrap_or_default();
        // A symbol may be a method of the service.
        let service = match self {
            Self::Health => None,
            Self::Reflection => symbol.rsplit_once('.').map(|(service, _)| service.to_owned()),
        };
        let names = [Some(symbol), service].into_iter().flatten();
        names.filter_map(|name| ServiceName::new(&name).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(message: &impl Message) -> Bytes {
        let message = message.encode_to_vec();
        let mut framed = vec![0];
        framed.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        framed.extend(message);
        framed.into()
    }

    fn names(about: About, first: &Bytes) -> Vec<String> {
        about.names(first).map(|name| name.to_string()).collect()
    }

    #[test]
    fn a_question_names_the_service_that_it_is_about() {
        let health = |service: &str| {
            framed(&HealthQuestion {
                service: service.into(),
            })
        };
        assert_eq!(names(About::Health, &health("shop.Stock")), ["shop.Stock"]);
        assert!(names(About::Health, &health("")).is_empty());
        let symbol = |symbol: &str| {
            framed(&ReflectionQuestion {
                file_containing_symbol: symbol.into(),
            })
        };
        assert_eq!(names(About::Reflection, &symbol("shop.Stock")), ["shop.Stock", "shop"]);
        assert_eq!(
            names(About::Reflection, &symbol("shop.Stock.Take")),
            ["shop.Stock.Take", "shop.Stock"]
        );
    }

    #[test]
    fn bytes_that_are_no_plain_message_name_no_service() {
        let whole = framed(&HealthQuestion {
            service: "shop.Stock".into(),
        });
        let mut compressed = whole.to_vec();
        compressed[0] = 1;
        for bytes in [
            compressed.into(),
            whole.slice(..whole.len() - 1),
            whole.slice(..3),
            Bytes::new(),
        ] {
            assert!(names(About::Health, &bytes).is_empty(), "{bytes:?}");
        }
    }
}
