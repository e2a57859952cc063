//! Names of files as they come from outside, validated once, at the door.
//!
//! A [`NodeName`] is one path component; a [`RelPath`] is a chain of them. Nothing that holds one can leave the
//! folder it is applied to, so no other module looks at the text of a name again.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;

/// The longest name of a directory entry on Linux (`NAME_MAX`), in bytes.
pub const NAME_LEN_MAX: usize = 255;
/// The longest path a system call takes (`PATH_MAX` without its NUL), in bytes.
pub const PATH_LEN_MAX: usize = 4095;

/// Why a text is not a name or a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A name without a character.
    #[error("name is empty")]
    Empty,
    /// `.` or `..`, which name no entry of their own.
    #[error("name is {0:?}")]
    Dots(String),
    /// A name of more than one component.
    #[error("name {0:?} contains '/'")]
    Slash(String),
    /// A NUL byte, which ends a path for the kernel.
    #[error("{0:?} contains a NUL byte")]
    Nul(String),
    /// A name beyond [`NAME_LEN_MAX`], or a path beyond [`PATH_LEN_MAX`].
    #[error("{shortened:?}… is {len} bytes long, at most {len_max} are possible")]
    TooLong {
        /// Its beginning.
        shortened: String,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        len_max: usize,
    },
    /// A path that begins with `/`.
    #[error("path {0:?} is absolute")]
    Absolute(String),
    /// A path whose `..` climb above where it starts from.
    #[error("path {0:?} leaves the input root")]
    Escapes(String),
}

/// One component of a path: not empty, not `.` or `..`, without `/` and NUL, at most 255 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Box<str>);

impl NodeName {
    /// Parses the `name` of an REAPI node.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        match name {
            "" => return Err(NameError::Empty),
            "." | ".." => return Err(NameError::Dots(name.to_owned())),
            _ => {}
        }
        if name.len() > NAME_LEN_MAX {
            return Err(too_long(name, NAME_LEN_MAX));
        }
        if name.contains('/') {
            return Err(NameError::Slash(name.to_owned()));
        }
        if name.contains('\0') {
            return Err(NameError::Nul(name.to_owned()));
        }
        Ok(Self(name.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<Path> for NodeName {
    fn as_ref(&self) -> &Path {
        Path::new(&*self.0)
    }
}

impl AsRef<OsStr> for NodeName {
    fn as_ref(&self) -> &OsStr {
        OsStr::new(&*self.0)
    }
}

/// A path below some folder, of zero or more [`NodeName`]s. The empty path is the folder itself.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(String);

impl RelPath {
    /// Parses a relative path; `.` and empty components vanish, `..` takes back the component before it.
    ///
    /// # Errors
    /// An absolute path, one that climbs above its start, and a component that is no [`NodeName`].
    pub fn parse(path: &str) -> Result<Self, NameError> {
        Self::default().join(path)
    }

    /// Resolves `path` as seen from here, by its text alone: symbolic links are not looked at.
    ///
    /// `RelPath::parse("a/b")?.join("../c")` is `a/c`.
    pub fn join(&self, path: &str) -> Result<Self, NameError> {
        if path.starts_with('/') {
            return Err(NameError::Absolute(path.to_owned()));
        }
        let mut joined = self.0.clone();
        for component in path.split('/') {
            match component {
                "" | "." => {}
                ".." if joined.is_empty() => return Err(NameError::Escapes(path.to_owned())),
                ".." => joined.truncate(joined.rfind('/').unwrap_or(0)),
                name => {
                    let name = NodeName::parse(name)?;
                    if !joined.is_empty() {
                        joined.push('/');
                    }
                    joined.push_str(name.as_str());
                }
            }
        }
        if joined.len() > PATH_LEN_MAX {
            return Err(too_long(&joined, PATH_LEN_MAX));
        }
        Ok(Self(joined))
    }

    /// Whether it is the folder itself.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The path without its last component; nothing for the empty path.
    pub fn parent(&self) -> Option<Self> {
        if self.0.is_empty() {
            return None;
        }
        Some(Self(self.0[..self.0.rfind('/').unwrap_or(0)].to_owned()))
    }

    /// The last component; nothing for the empty path.
    pub fn file_name(&self) -> Option<NodeName> {
        let name = self.0.rsplit('/').next().filter(|name| !name.is_empty())?;
        Some(NodeName(name.into()))
    }

    /// The components, outermost first.
    pub fn components(&self) -> impl Iterator<Item = NodeName> + '_ {
        self.0.split('/').filter(|name| !name.is_empty()).map(|name| NodeName(name.into()))
    }

    /// Whether `self` is `other` or lies below it.
    pub fn starts_with(&self, other: &Self) -> bool {
        match self.0.strip_prefix(&other.0) {
            Some(rest) => other.0.is_empty() || rest.is_empty() || rest.starts_with('/'),
            None => false,
        }
    }

    /// The text, components separated by `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<Path> for RelPath {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

fn too_long(text: &str, len_max: usize) -> NameError {
    NameError::TooLong { shortened: text.chars().take(40).collect(), len: text.len(), len_max }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_are_no_single_component_are_refused() {
        let long = "é".repeat(128);
        for name in ["", ".", "..", "a/b", "/", "a\0b", &long] {
            assert!(NodeName::parse(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn odd_names_that_linux_allows_are_accepted() {
        let long = "x".repeat(NAME_LEN_MAX);
        for name in ["a", "...", "-rf", " ", "a\\b", "a\nb", "ünï", "..a", &long] {
            assert_eq!(NodeName::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn paths_resolve_by_their_text() {
        let cases = [
            ("", "a/b", "a/b"),
            ("src", "../lib/x", "lib/x"),
            ("a", ".", "a"),
            ("a", "b//c/./d/", "a/b/c/d"),
            ("a/b", "../..", ""),
        ];
        for (from, path, expected) in cases {
            let resolved = RelPath::parse(from).unwrap().join(path).unwrap();
            assert_eq!(resolved.as_str(), expected, "{path:?} from {from:?}");
        }
    }

    #[test]
    fn paths_never_leave_their_root() {
        for (from, path) in [("", ".."), ("a", "../.."), ("a", "../../a"), ("", "a/../../b")] {
            let error = RelPath::parse(from).unwrap().join(path).unwrap_err();
            assert!(matches!(error, NameError::Escapes(_)), "{path:?} from {from:?}: {error}");
        }
        assert!(matches!(RelPath::parse("/etc"), Err(NameError::Absolute(_))));
    }

    #[test]
    fn a_prefix_is_a_whole_component() {
        let path = |text| RelPath::parse(text).unwrap();
        assert!(path("a/b").starts_with(&path("a")));
        assert!(path("a").starts_with(&path("a")));
        assert!(path("a").starts_with(&path("")));
        assert!(!path("ab").starts_with(&path("a")));
    }

    proptest! {
        // Whatever text arrives, a parsed path has only components that are names of their own.
        #[test]
        fn parsed_paths_have_only_plain_components(text in "[a./\0]{0,12}") {
            if let Ok(path) = RelPath::parse(&text) {
                let components: Vec<_> = path.components().collect();
                for name in &components {
                    prop_assert!(NodeName::parse(name.as_str()).is_ok());
                }
                let joined: Vec<_> = components.iter().map(NodeName::as_str).collect();
                prop_assert_eq!(joined.join("/"), path.as_str());
            }
        }
    }
}
