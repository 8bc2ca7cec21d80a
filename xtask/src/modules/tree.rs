//! The modules of one crate, and the file that defines a name.
//!
//! A name is followed through every re-export to its definition, so an import of `crate::Config` points at the file of
//! `Config` and not at `lib.rs`. Code under `#[cfg(test)]` is no part of the tree.
//!
//! Left out: names that a macro makes. They count as defined in the file of the module that the path names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::ext::IdentExt as _;
use syn::visit::{self, Visit};

/// The place of a file in [`Crate::files`].
pub(super) type FileId = usize;
type ModuleId = usize;

const ROOT: ModuleId = 0;

/// The modules of a crate, as its root file declares them.
#[derive(Debug)]
pub(super) struct Crate {
    pub(super) files: Vec<PathBuf>,
    pub(super) structs: Vec<Struct>,
    modules: Vec<Module>,
}

/// A struct that ships.
#[derive(Debug)]
pub(super) struct Struct {
    pub(super) file: FileId,
    pub(super) name: String,
    pub(super) fields: usize,
    pub(super) docs: String,
}

/// A name that one file takes from another.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reference {
    pub(super) from: FileId,
    pub(super) to: FileId,
    pub(super) name: String,
}

#[derive(Debug)]
struct Module {
    parent: ModuleId,
    children: BTreeMap<String, ModuleId>,
    /// Where each item of the module stands. More than one file is involved when the module includes another.
    items: BTreeMap<String, FileId>,
    file: FileId,
    imports: Vec<Import>,
    /// Every path in the code, `use` declarations aside.
    paths: BTreeSet<(FileId, Vec<String>)>,
}

/// One leaf of a `use` declaration.
#[derive(Debug)]
struct Import {
    file: FileId,
    /// The name it brings into scope; `None` for a glob.
    name: Option<String>,
    path: Vec<String>,
    reexport: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Module(ModuleId),
    Item(FileId),
    /// Another crate, the prelude, or a local name.
    Elsewhere,
}

impl Crate {
    /// Reads the crate whose root file is `root`; `text` gives the content of a file, or nothing when it is missing.
    ///
    /// # Errors
    ///
    /// A file is missing or does not parse.
    pub(super) fn read(root: &Path, text: &impl Fn(&Path) -> Option<String>) -> Result<Self> {
        let mut it = Crate {
            files: Vec::new(),
            structs: Vec::new(),
            modules: Vec::new(),
        };
        let folder = root.parent().unwrap_or(Path::new("")).to_path_buf();
        it.read_module(root.to_path_buf(), &folder, ROOT, text)?;
        Ok(it)
    }

    fn read_module(
        &mut self,
        file: PathBuf,
        folder: &Path,
        parent: ModuleId,
        text: &impl Fn(&Path) -> Option<String>,
    ) -> Result<ModuleId> {
        let (file, items) = self.parse(file, text)?;
        let module = self.add_module(parent, file);
        self.read_items(&items, module, file, folder, text)?;
        Ok(module)
    }

    fn parse(&mut self, file: PathBuf, text: &impl Fn(&Path) -> Option<String>) -> Result<(FileId, Vec<syn::Item>)> {
        let source = text(&file).with_context(|| format!("there is no {}", file.display()))?;
        let parsed = syn::parse_file(&source).with_context(|| format!("cannot parse {}", file.display()))?;
        self.files.push(file);
        Ok((self.files.len() - 1, parsed.items))
    }

    fn add_module(&mut self, parent: ModuleId, file: FileId) -> ModuleId {
        self.modules.push(Module {
            parent,
            children: BTreeMap::new(),
            items: BTreeMap::new(),
            file,
            imports: Vec::new(),
            paths: BTreeSet::new(),
        });
        self.modules.len() - 1
    }

    /// Adds `items`, which stand in `file`, to `module`; the files of its children lie in `folder`.
    fn read_items(
        &mut self,
        items: &[syn::Item],
        module: ModuleId,
        file: FileId,
        folder: &Path,
        text: &impl Fn(&Path) -> Option<String>,
    ) -> Result<()> {
        for item in items {
            if is_test(attributes(item)) {
                continue;
            }
            if let syn::Item::Mod(declared) = item {
                let child = self.read_child(declared, module, file, folder, text)?;
                self.modules[module].children.insert(plain(&declared.ident), child);
                continue;
            }
            if let Some(included) = included(item) {
                let path = self.files[file].with_file_name(included);
                let (file, items) = self.parse(path, text)?;
                self.read_items(&items, module, file, folder, text)?;
                continue;
            }
            if let Some(name) = name(item) {
                self.modules[module].items.insert(name, file);
            }
            if let syn::Item::Struct(found) = item {
                self.structs.push(Struct {
                    file,
                    name: plain(&found.ident),
                    fields: found.fields.len(),
                    docs: docs(&found.attrs),
                });
            }
            let module = &mut self.modules[module];
            Reader { module, file }.visit_item(item);
        }
        Ok(())
    }

    fn read_child(
        &mut self,
        declared: &syn::ItemMod,
        parent: ModuleId,
        file: FileId,
        folder: &Path,
        text: &impl Fn(&Path) -> Option<String>,
    ) -> Result<ModuleId> {
        let name = plain(&declared.ident);
        let below = folder.join(&name);
        if let Some((_, items)) = &declared.content {
            let child = self.add_module(parent, file);
            self.read_items(items, child, file, &below, text)?;
            return Ok(child);
        }
        let path = match literal(&declared.attrs, "path").next() {
            Some(path) => self.files[file].with_file_name(path),
            None => {
                let beside = folder.join(format!("{name}.rs"));
                let within = below.join("mod.rs");
                if text(&beside).is_some() { beside } else { within }
            }
        };
        self.read_module(path, &below, parent, text)
    }

    /// Every name that a file takes from another file of the crate.
    ///
    /// A re-export takes nothing by itself: a parent that only publishes what its children define has no edge to them.
    pub(super) fn references(&self) -> BTreeSet<Reference> {
        let mut found = BTreeSet::new();
        for (id, module) in self.modules.iter().enumerate() {
            let imports = module.imports.iter().filter(|it| !it.reexport && it.name.is_some());
            let imports = imports.map(|it| (it.file, &it.path));
            let paths = module.paths.iter().map(|(file, path)| (*file, path));
            for (from, path) in imports.chain(paths) {
                let (target, name) = self.resolve(id, path, &mut BTreeSet::new());
                if let Target::Item(to) = target
                    && to != from
                {
                    found.insert(Reference { from, to, name });
                }
            }
        }
        found
    }

    /// What `path` means in `module`, and the segment that decided it. `seen` holds the imports on the way here.
    fn resolve(&self, module: ModuleId, path: &[String], seen: &mut BTreeSet<(ModuleId, usize)>) -> (Target, String) {
        let mut at = module;
        let mut anchored = false;
        let mut segments = path.iter().peekable();
        while let Some(segment) = segments.peek() {
            match segment.as_str() {
                "crate" => at = ROOT,
                "super" => at = self.modules[at].parent,
                "self" => {}
                _ => break,
            }
            anchored = true;
            segments.next();
        }
        while let Some(segment) = segments.next() {
            let is_last = segments.peek().is_none();
            let found = self.look_up(at, segment, is_last, seen);
            let target = found.unwrap_or(match anchored {
                true => Target::Item(self.modules[at].file),
                false => Target::Elsewhere,
            });
            match target {
                Target::Module(inner) => at = inner,
                Target::Item(_) | Target::Elsewhere => return (target, segment.clone()),
            }
            anchored = true;
        }
        (Target::Module(at), String::new())
    }

    /// What `name` means inside `module`. Before `::` a module goes before an item of the same name, at the end after it.
    fn look_up(
        &self,
        module: ModuleId,
        name: &str,
        is_last: bool,
        seen: &mut BTreeSet<(ModuleId, usize)>,
    ) -> Option<Target> {
        let here = &self.modules[module];
        let child = here.children.get(name).map(|it| Target::Module(*it));
        let item = here.items.get(name).map(|it| Target::Item(*it));
        let own = if is_last { item.or(child) } else { child.or(item) };
        if own.is_some() {
            return own;
        }
        let (globs, named): (Vec<_>, Vec<_>) = here.imports.iter().enumerate().partition(|(_, it)| it.name.is_none());
        for (at, import) in named {
            if import.name.as_deref() == Some(name) && seen.insert((module, at)) {
                return Some(self.resolve(module, &import.path, seen).0);
            }
        }
        for (at, import) in globs {
            if !seen.insert((module, at)) {
                continue;
            }
            let (source, _) = self.resolve(module, &import.path, seen);
            if let Target::Module(source) = source
                && let Some(found) = self.look_up(source, name, is_last, seen)
            {
                return Some(found);
            }
        }
        None
    }
}

/// Collects the imports and paths of one item into its module.
struct Reader<'a> {
    module: &'a mut Module,
    file: FileId,
}

impl Reader<'_> {
    fn import(&mut self, tree: &syn::UseTree, prefix: &[String], reexport: bool) {
        let with = |segment: &syn::Ident| {
            let mut path = prefix.to_vec();
            path.push(plain(segment));
            path
        };
        let (name, path) = match tree {
            syn::UseTree::Path(inner) => return self.import(&inner.tree, &with(&inner.ident), reexport),
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(tree, prefix, reexport);
                }
                return;
            }
            syn::UseTree::Name(leaf) if leaf.ident == "self" => (prefix.last().cloned(), prefix.to_vec()),
            syn::UseTree::Name(leaf) => (Some(plain(&leaf.ident)), with(&leaf.ident)),
            syn::UseTree::Rename(leaf) if leaf.ident == "self" => (Some(plain(&leaf.rename)), prefix.to_vec()),
            syn::UseTree::Rename(leaf) => (Some(plain(&leaf.rename)), with(&leaf.ident)),
            syn::UseTree::Glob(_) => (None, prefix.to_vec()),
        };
        self.module.imports.push(Import {
            file: self.file,
            name,
            path,
            reexport,
        });
    }

    /// Finds the paths among the tokens that a macro is given.
    fn read_tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.end_path(&mut path);
                    }
                    path.push(plain(&ident));
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.end_path(&mut path);
                    self.read_tokens(group.stream());
                    colons = 0;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {
                    self.end_path(&mut path);
                    colons = 0;
                }
            }
        }
        self.end_path(&mut path);
    }

    fn end_path(&mut self, path: &mut Vec<String>) {
        if !path.is_empty() {
            self.module.paths.insert((self.file, std::mem::take(path)));
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_test(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        // A leading `::` names another crate.
        if item.leading_colon.is_none() {
            let reexport = !matches!(item.vis, syn::Visibility::Inherited);
            self.import(&item.tree, &[], reexport);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attributes = match item {
            syn::ImplItem::Const(it) => &it.attrs,
            syn::ImplItem::Fn(it) => &it.attrs,
            syn::ImplItem::Type(it) => &it.attrs,
            syn::ImplItem::Macro(it) => &it.attrs,
            _ => return,
        };
        if !is_test(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !is_test(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !is_test(&local.attrs) {
            visit::visit_local(self, local);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            let segments = path.segments.iter().map(|it| plain(&it.ident)).collect();
            self.module.paths.insert((self.file, segments));
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.read_tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }

    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}
}

/// An identifier without the `r#` that lets a keyword be one.
fn plain(ident: &syn::Ident) -> String {
    ident.unraw().to_string()
}

/// Whether only a test build compiles what carries these attributes.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|it| {
        let Ok(list) = it.meta.require_list() else { return false };
        let text = list.tokens.to_string();
        list.path.is_ident("cfg") && (text == "test" || text.replace(' ', "").starts_with("all(test,"))
    })
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(it) => &it.attrs,
        syn::Item::Enum(it) => &it.attrs,
        syn::Item::ExternCrate(it) => &it.attrs,
        syn::Item::Fn(it) => &it.attrs,
        syn::Item::Impl(it) => &it.attrs,
        syn::Item::Macro(it) => &it.attrs,
        syn::Item::Mod(it) => &it.attrs,
        syn::Item::Static(it) => &it.attrs,
        syn::Item::Struct(it) => &it.attrs,
        syn::Item::Trait(it) => &it.attrs,
        syn::Item::Type(it) => &it.attrs,
        syn::Item::Union(it) => &it.attrs,
        syn::Item::Use(it) => &it.attrs,
        _ => &[],
    }
}

/// The name that an item defines in its module.
fn name(item: &syn::Item) -> Option<String> {
    let ident = match item {
        syn::Item::Const(it) => &it.ident,
        syn::Item::Enum(it) => &it.ident,
        syn::Item::Fn(it) => &it.sig.ident,
        syn::Item::Macro(it) => it.ident.as_ref()?,
        syn::Item::Static(it) => &it.ident,
        syn::Item::Struct(it) => &it.ident,
        syn::Item::Trait(it) => &it.ident,
        syn::Item::Type(it) => &it.ident,
        syn::Item::Union(it) => &it.ident,
        _ => return None,
    };
    Some(plain(ident))
}

/// The file that `include!("…")` names.
fn included(item: &syn::Item) -> Option<String> {
    let syn::Item::Macro(call) = item else { return None };
    let file: syn::LitStr = call
        .mac
        .path
        .is_ident("include")
        .then(|| call.mac.parse_body().ok())??;
    Some(file.value())
}

/// The text of each `#[name = "text"]`.
fn literal<'a>(attributes: &'a [syn::Attribute], name: &'a str) -> impl Iterator<Item = String> + 'a {
    attributes.iter().filter_map(move |it| {
        let pair = it.meta.require_name_value().ok().filter(|it| it.path.is_ident(name))?;
        match &pair.value {
            syn::Expr::Lit(syn::ExprLit {
                lit: syn::Lit::Str(text),
                ..
            }) => Some(text.value()),
            _ => None,
        }
    })
}

fn docs(attributes: &[syn::Attribute]) -> String {
    literal(attributes, "doc").collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The edges of a crate whose files are given, as `from → to: name`.
    fn edges(files: &[(&str, &str)]) -> Vec<String> {
        let text = |path: &Path| {
            let found = files.iter().find(|(it, _)| Path::new(it) == path);
            found.map(|(_, text)| (*text).to_owned())
        };
        let it = Crate::read(Path::new(files[0].0), &text).unwrap();
        let shown = |id: FileId| it.files[id].display();
        let edges = it.references();
        edges
            .iter()
            .map(|edge| format!("{} → {}: {}", shown(edge.from), shown(edge.to), edge.name))
            .collect()
    }

    #[test]
    fn an_import_points_at_the_file_that_defines_the_name() {
        let found = edges(&[
            ("src/lib.rs", "mod config; mod call; pub use config::Config;"),
            ("src/config.rs", "pub struct Config;"),
            ("src/call.rs", "use crate::Config;"),
        ]);
        assert_eq!(found, ["src/call.rs → src/config.rs: Config"]);
    }

    #[test]
    fn a_re_export_is_followed_through_several_modules_and_globs() {
        let found = edges(&[
            ("lib.rs", "mod a; mod b; pub use a::*;"),
            ("a/mod.rs", "mod deep; pub use deep::Thing as Named;"),
            ("a/deep.rs", "pub struct Thing;"),
            ("b.rs", "use super::Named;"),
        ]);
        assert_eq!(found, ["b.rs → a/deep.rs: Named"]);
    }

    #[test]
    fn a_re_export_that_its_own_module_uses_is_an_edge() {
        let files = |code| [("lib.rs", code), ("a.rs", "pub struct A;")];
        assert_eq!(edges(&files("mod a; pub use a::A;")), [""; 0]);
        assert_eq!(edges(&files("mod a; pub use a::A; struct B(A);")), ["lib.rs → a.rs: A"]);
        assert_eq!(edges(&files("mod a; use a::A;")), ["lib.rs → a.rs: A"]);
    }

    #[test]
    fn paths_in_code_and_in_macros_count_as_imports_do() {
        let found = edges(&[
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "pub fn f() {} pub fn g() {} pub enum Kind { One }"),
            ("b.rs", "fn x(_: crate::a::Kind) { super::a::f(); }"),
            (
                "c.rs",
                "use crate::a; fn x() { let _ = vec![a::Kind::One, { crate::a::g() }]; }",
            ),
        ]);
        let expected = [
            "b.rs → a.rs: Kind",
            "b.rs → a.rs: f",
            "c.rs → a.rs: Kind",
            "c.rs → a.rs: g",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_glob_gives_the_names_that_are_used() {
        let found = edges(&[
            ("lib.rs", "mod a; struct Used; struct Other;"),
            ("a.rs", "use super::*; fn x(_: Used) {}"),
        ]);
        assert_eq!(found, ["a.rs → lib.rs: Used"]);
    }

    #[test]
    fn tests_other_crates_and_visibility_make_no_edge() {
        let found = edges(&[
            ("lib.rs", "mod a; mod b; pub struct Root;"),
            (
                "a.rs",
                "use std::fmt; use ::b::X; pub(in crate::b) fn x() { b::f(); }\n\
                 impl x { #[cfg(test)] fn t() { crate::b::f(); } }\n\
                 #[cfg(test)] use crate::Root;\n#[cfg(test)] mod missing;\n\
                 #[cfg(all(test, unix))] mod tests { use crate::b::f; }",
            ),
            ("b.rs", "pub fn f() {}"),
        ]);
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn modules_inside_a_file_belong_to_the_file_and_an_included_file_is_one() {
        let found = edges(&[
            (
                "lib.rs",
                "mod a; mod r#gen { pub mod v1 { include!(\"gen/v1.rs\"); } } mod proto { pub use crate::r#gen::v1::*; }",
            ),
            ("gen/v1.rs", "pub struct Message { x: super::super::a::Made }"),
            ("a.rs", "use crate::proto::Message; fill! { Made }"),
        ]);
        assert_eq!(found, ["a.rs → gen/v1.rs: Message", "gen/v1.rs → a.rs: Made"]);
    }

    #[test]
    fn a_module_may_name_its_file_and_lie_in_a_folder_beside_its_parent() {
        let found = edges(&[
            ("lib.rs", "mod a; #[path = \"odd.rs\"] mod b; struct Root;"),
            ("odd.rs", "use crate::a::inner::Inner;"),
            ("a.rs", "pub mod inner;"),
            ("a/inner.rs", "pub struct Inner(crate::Root);"),
        ]);
        assert_eq!(found, ["a/inner.rs → lib.rs: Root", "odd.rs → a/inner.rs: Inner"]);
    }

    #[test]
    fn imports_that_name_each_other_end() {
        let found = edges(&[
            ("lib.rs", "mod a; mod b; fn x(_: a::Lost) {}"),
            ("a.rs", "pub use super::b::Lost;"),
            ("b.rs", "pub use super::a::Lost;"),
        ]);
        assert!(found.len() <= 1, "{found:?}");
    }
}
