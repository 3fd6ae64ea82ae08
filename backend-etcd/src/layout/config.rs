//! Keys of configuration in etcd: native ones, or plain ones as other programs write and read them.

use enlist::{ConfigPath, ConfigScope, Error, Namespace};

use super::{native::Native, not_carried};
use crate::watch::record::KeyRange;

/// Layout of configuration in etcd. Values are the bytes of the user in every layout.
#[derive(Clone, Debug)]
pub struct ConfigLayout(Keys);

#[derive(Clone, Debug)]
enum Keys {
    Native(Native),
    Plain {
        /// Text before each path: empty, or with `/` at its end.
        root: String,
    },
}

impl Default for ConfigLayout {
    fn default() -> Self {
        Self::from(Native::default())
    }
}

impl From<Native> for ConfigLayout {
    /// The keys `{prefix}/config/{namespace}/{path}`, with escaped segments.
    fn from(native: Native) -> Self {
        Self(Keys::Native(native))
    }
}

impl ConfigLayout {
    /// Returns the layout of plain keys: `prefix`, `/` and the path, without escapes. `etcdctl put /prefix/app.toml`
    /// writes the value `app.toml` of the prefix `/prefix`.
    ///
    /// Slashes at the end of the prefix are ignored; the prefix `/` stands for keys such as `/app.toml`. Under an empty
    /// prefix the path is the key itself. All values then would be the whole store, so it cannot be listed or watched.
    ///
    /// There is only the namespace `default`: others are refused with [`Error::InvalidName`].
    pub fn plain(prefix: impl AsRef<str>) -> Self {
        let prefix = prefix.as_ref();
        let root = if prefix.is_empty() { String::new() } else { format!("{}/", prefix.trim_end_matches('/')) };
        Self(Keys::Plain { root })
    }

    /// Returns its name, for options and messages.
    pub fn name(&self) -> &'static str {
        match self.0 {
            Keys::Native(_) => "native",
            Keys::Plain { .. } => "plain",
        }
    }

    /// Returns the key of a value.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] for a namespace it cannot carry.
    pub fn key(&self, namespace: &Namespace, path: &ConfigPath) -> Result<Vec<u8>, Error> {
        Ok(match &self.0 {
            Keys::Native(native) => native.config_key(namespace, path),
            Keys::Plain { root } => {
                only_default(namespace)?;
                format!("{root}{path}")
            }
        }
        .into_bytes())
    }

    /// Returns the range of a scope. It contains no key of another scope or namespace.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] for a namespace it cannot carry, [`Error::Unsupported`] if the scope would be the whole
    /// store.
    pub fn range(&self, namespace: &Namespace, scope: &ConfigScope) -> Result<KeyRange, Error> {
        match scope {
            ConfigScope::Path(path) => Ok(KeyRange::key(self.key(namespace, path)?)),
            ConfigScope::Below(path) => {
                let mut start = self.key(namespace, path)?;
                start.push(b'/');
                Ok(KeyRange::prefix(start))
            }
            ConfigScope::All => {
                let root = self.root(namespace)?;
                if root.is_empty() {
                    return Err(Error::Unsupported { what: "all configuration under an empty prefix".to_owned() });
                }
                Ok(KeyRange::prefix(root))
            }
        }
    }

    /// Returns the path of a value of `namespace` by its key; `None` if the key does not have this layout's shape.
    pub fn path_of(&self, namespace: &Namespace, key: &[u8]) -> Option<ConfigPath> {
        let rest = key.strip_prefix(self.root(namespace).ok()?.as_bytes())?;
        match self.0 {
            Keys::Native(_) => Native::config_path(rest),
            Keys::Plain { .. } => ConfigPath::parse(str::from_utf8(rest).ok()?).ok(),
        }
    }

    /// Returns the text before each path of a namespace.
    fn root(&self, namespace: &Namespace) -> Result<String, Error> {
        match &self.0 {
            Keys::Native(native) => Ok(native.config_prefix(namespace)),
            Keys::Plain { root } => only_default(namespace).map(|()| root.clone()),
        }
    }
}

fn only_default(namespace: &Namespace) -> Result<(), Error> {
    match namespace.as_str().chars().next() {
        Some(character) if *namespace != Namespace::default() => Err(not_carried("namespace", character)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> ConfigPath {
        ConfigPath::parse(text).unwrap()
    }

    fn contains(range: &KeyRange, key: &[u8]) -> bool {
        let (start, end) = range.bounds();
        end.map_or(key == start, |end| key >= start && key < end)
    }

    fn text(layout: &ConfigLayout, value: &str) -> String {
        String::from_utf8(layout.key(&Namespace::default(), &path(value)).unwrap()).unwrap()
    }

    #[test]
    fn keys_are_as_documented() {
        let native = ConfigLayout::default();
        assert_eq!([&native, &ConfigLayout::plain("/app")].map(ConfigLayout::name), ["native", "plain"]);
        let team = Namespace::parse("team/a").unwrap();
        assert_eq!(text(&native, "app/log.toml"), "enlist/config/default/app/log.toml");
        assert_eq!(
            native.key(&team, &path("50%/größe")).unwrap(),
            "enlist/config/team%2Fa/50%25/gr%C3%B6%C3%9Fe".as_bytes()
        );
        let ours = ConfigLayout::from(Native::with_prefix("/ours/").unwrap());
        assert_eq!(text(&ours, "a"), "ours/config/default/a");
        for (prefix, key) in [
            ("/prefix", "/prefix/50%/app.toml"),
            ("/prefix/", "/prefix/50%/app.toml"),
            ("/", "/50%/app.toml"),
            ("", "50%/app.toml"),
            ("a/b", "a/b/50%/app.toml"),
        ] {
            assert_eq!(text(&ConfigLayout::plain(prefix), "50%/app.toml"), key);
        }
    }

    #[test]
    fn plain_keys_have_one_namespace_and_are_never_the_whole_store() {
        let plain = ConfigLayout::plain("/prefix");
        let other = Namespace::parse("other").unwrap();
        assert!(matches!(plain.key(&other, &path("a")), Err(Error::InvalidName { field: "namespace", .. })));
        assert!(matches!(plain.range(&other, &ConfigScope::All), Err(Error::InvalidName { .. })));
        assert_eq!(plain.path_of(&other, b"/prefix/a"), None);
        let (root, bare) = (ConfigLayout::plain("/"), ConfigLayout::plain(""));
        let namespace = Namespace::default();
        assert_eq!(root.range(&namespace, &ConfigScope::All).unwrap(), KeyRange::prefix(*b"/"));
        assert!(matches!(bare.range(&namespace, &ConfigScope::All), Err(Error::Unsupported { .. })));
        let below = bare.range(&namespace, &ConfigScope::Below(path("app"))).unwrap();
        assert_eq!(below, KeyRange::prefix(*b"app/"));
    }

    #[test]
    fn keys_of_another_shape_have_no_path() {
        let (native, plain, namespace) = (ConfigLayout::default(), ConfigLayout::plain("/p"), Namespace::default());
        for rest in [&b""[..], b"/", b"a/", b"/a", b"a//b", b"a\xff", b"a\n", b"%0A", b"50%", b"%2f", b"%2F%", b"%41"] {
            let key = [b"enlist/config/default/", rest].concat();
            assert_eq!(native.path_of(&namespace, &key), None, "{}", key.escape_ascii());
        }
        for rest in [&b""[..], b"/", b"a/", b"/a", b"a//b", b"a\xff", b"a\n"] {
            let key = [b"/p/", rest].concat();
            assert_eq!(plain.path_of(&namespace, &key), None, "{}", key.escape_ascii());
        }
        assert_eq!(native.path_of(&namespace, b"enlist/config/other/a"), None);
        assert_eq!(plain.path_of(&namespace, b"/p2/a"), None);
        let long = [b"/p/", &vec![b'x'; 1025][..]].concat();
        assert_eq!(plain.path_of(&namespace, &long), None);
    }

    proptest! {
        #[test]
        fn every_path_is_read_back_from_its_key_and_is_in_its_scopes_only(
            segments in proptest::collection::vec("[^/\\p{Cc}]{1,12}", 1..5),
            other in proptest::collection::vec("[ab%/]{1,3}", 1..4),
            namespace in "[^\\p{Cc}]{1,12}",
        ) {
            let value = path(&segments.join("/"));
            let named = Namespace::parse(&namespace).unwrap();
            let default = Namespace::default();
            for (layout, namespace) in [
                (ConfigLayout::default(), &named),
                (ConfigLayout::plain("/prefix"), &default),
                (ConfigLayout::plain(""), &default),
            ] {
                let key = layout.key(namespace, &value).unwrap();
                prop_assert_eq!(layout.path_of(namespace, &key), Some(value.clone()));
                let mut scopes = vec![ConfigScope::Path(value.clone())];
                for upto in 1..=segments.len() {
                    scopes.push(ConfigScope::Below(path(&segments[..upto].join("/"))));
                }
                scopes.extend(ConfigPath::parse(other.join("/")).ok().map(ConfigScope::Below));
                for scope in scopes {
                    let range = layout.range(namespace, &scope).unwrap();
                    prop_assert_eq!(contains(&range, &key), scope.contains(&value), "{} {}", scope, value);
                }
            }
        }

        #[test]
        fn arbitrary_keys_never_panic(rest in proptest::collection::vec(any::<u8>(), 0..20)) {
            for (layout, root) in
                [(ConfigLayout::default(), &b"enlist/config/default/"[..]), (ConfigLayout::plain("/p"), b"/p/")]
            {
                let (key, namespace) = ([root, &rest[..]].concat(), Namespace::default());
                if let Some(path) = layout.path_of(&namespace, &key) {
                    prop_assert_eq!(layout.key(&namespace, &path).unwrap(), key);
                }
            }
        }
    }
}
