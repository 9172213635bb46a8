//! The name under which an open image is shown: a plain file name where that says everything, `json:{...}` otherwise.

use serde_json::{Map, Value};

use crate::text::qdict;

/// What is known about how a node was opened.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The file name or URL, where it alone leads to the same node.
    plain: Option<String>,
    /// All options that lead to it.
    tree: Map<String, Value>,
}

impl Shown {
    /// A protocol node that `name` alone describes.
    pub fn plain(driver: &str, name: &str) -> Self {
        let mut tree = Map::new();
        tree.insert("driver".to_owned(), driver.into());
        tree.insert("filename".to_owned(), name.into());
        Self {
            plain: Some(name.to_owned()),
            tree,
        }
    }
    /// A protocol node that a URL describes as well as `options` do.
    pub fn url(driver: &str, url: &str, options: Vec<(String, Value)>) -> Self {
        Self {
            plain: Some(url.to_owned()),
            ..Self::options(driver, options)
        }
    }
    /// A node that only its options describe.
    pub fn options(driver: &str, options: Vec<(String, Value)>) -> Self {
        let mut tree: Map<String, Value> = options.into_iter().collect();
        tree.insert("driver".to_owned(), driver.into());
        Self { plain: None, tree }
    }
    /// A format node over `file`; `options` are those that the file does not carry itself.
    pub fn format(driver: &str, options: Vec<(String, Value)>, file: &Self, over_protocol: bool) -> Self {
        let plain = file.plain.clone().filter(|_| options.is_empty() && over_protocol);
        let mut shown = Self::options(driver, options);
        shown.tree.insert("file".to_owned(), Value::Object(file.tree.clone()));
        shown.plain = plain;
        shown
    }
    /// A node that lies over another one under the key `child`.
    pub fn over(driver: &str, options: Vec<(String, Value)>, child: &str, below: &Self) -> Self {
        let mut shown = Self::options(driver, options);
        shown.tree.insert(child.to_owned(), Value::Object(below.tree.clone()));
        shown
    }
    /// The same with a layer below that the image itself does not name.
    #[must_use]
    pub fn with_backing(mut self, backing: Option<&Self>) -> Self {
        let value = backing.map_or(Value::Null, |b| Value::Object(b.tree.clone()));
        self.tree.insert("backing".to_owned(), value);
        self.plain = None;
        self
    }
    /// The name.
    pub fn name(&self) -> String {
        match &self.plain {
            Some(name) => name.clone(),
            None => format!("json:{}", qdict::line(&Value::Object(self.tree.clone()))),
        }
    }
}
