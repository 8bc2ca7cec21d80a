//! Method names as labels.

use std::sync::{Arc, PoisonError, RwLock};

/// The label of a service or method that is not one of the known names.
pub(crate) const OTHER: &str = "_OTHER";

/// Methods of one service that have a label of their own in metrics, and at the provider in spans.
pub const MAX_METHODS: usize = 64;

/// The known methods of a service.
#[derive(Debug, Default)]
pub(crate) struct MethodNames(RwLock<Vec<Arc<str>>>);

/// A method as a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Method {
    /// The service has one method only.
    None,
    Other,
    /// A known method, and its place among them.
    Known(usize, Arc<str>),
}

impl MethodNames {
    /// The label of a method.
    pub(crate) fn find(&self, name: &str) -> Method {
        if name.is_empty() {
            return Method::None;
        }
        find(&self.0.read().unwrap_or_else(PoisonError::into_inner), name).unwrap_or(Method::Other)
    }

    /// The label of a method, which is known from now on if there is room.
    pub(crate) fn learn(&self, name: &str) -> Method {
        let known = self.find(name);
        if known != Method::Other {
            return known;
        }
        let mut names = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have learned it meanwhile.
        if let Some(known) = find(&names, name) {
            return known;
        }
        if names.len() >= MAX_METHODS {
            return Method::Other;
        }
        let name: Arc<str> = name.into();
        names.push(Arc::clone(&name));
        Method::Known(names.len() - 1, name)
    }
}

fn find(names: &[Arc<str>], name: &str) -> Option<Method> {
    let place = names.iter().position(|known| **known == *name)?;
    Some(Method::Known(place, Arc::clone(&names[place])))
}

impl Method {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::None => "",
            Self::Other => OTHER,
            Self::Known(_, name) => name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_a_bounded_number_of_method_labels() {
        let names = MethodNames::default();
        assert_eq!(names.find("Sum"), Method::Other);
        assert_eq!(names.learn("Sum"), names.learn("Sum"));
        assert_eq!(names.learn(""), Method::None);
        for at in 1..MAX_METHODS {
            assert_eq!(names.learn(&format!("M{at}")).as_str(), format!("M{at}"));
        }
        assert_eq!(names.learn("one too many").as_str(), OTHER);
        assert_eq!(names.find("Sum").as_str(), "Sum");
    }
}
