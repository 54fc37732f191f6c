//! The layering of the source: no files of a crate import one another in a circle.
//!
//! A file imports what its `use` items and its qualified paths name in another file of its crate. Neither `mod x;` nor a
//! `pub use` out of a child module is an import: they only say where things are. A name that the root of a crate re-exports
//! is imported from the file that has it; one that another module re-exports, from that module. Code under `#[cfg(test)]`
//! does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use petgraph::algo::{astar, tarjan_scc};
use petgraph::graphmap::DiGraphMap;
use syn::buffer::{Cursor, TokenBuffer};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, UseTree, Visibility};

/// A module by its path from the root of the crate.
type Module = Vec<String>;

/// How many renamings a name is followed through.
const DEEPEST: usize = 8;

/// What `from` imports, by (`from`, `to`).
type Imports = BTreeMap<(String, String), BTreeSet<String>>;

#[test]
fn the_host_tool_has_no_circle() {
    assert_no_circle(&["qemu/src/main.rs"]);
}

#[test]
fn the_crates_of_the_lab_have_no_circle() {
    assert_no_circle(&["src/lab/policy/lib.rs", "src/lab/workload/lib.rs", "src/lab/check/lib.rs"]);
}

#[test]
fn the_hypervisor_has_no_circle() {
    assert_no_circle(&["src/lib.rs", "src/boot/lib.rs"]);
}

#[test]
fn a_circle_is_found_and_named() {
    let files = [
        ("lib.rs", "pub mod a; mod b; mod c; mod d; pub use c::C; fn main() { b::f() }"),
        ("a/mod.rs", "pub use one::One; mod one; pub struct A;"),
        ("a/one.rs", "use super::A; pub struct One;"),
        ("b.rs", "use crate::{C, a::{A, One}, c as other}; fn f() { assert!(other::E != 0, \"crate::d::D\") }"),
        ("c.rs", "/// [`crate::b`]\npub fn c() { super::d::D.e() } #[cfg(test)] mod tests { use crate::a::A; }"),
        ("d.rs", "use std::fmt; pub mod inner { use super::super::b; fn f(it: b::B) { b::f(it) } }"),
    ];
    let read = |path: &str| files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned());
    let expected = "b.rs imports C, E, c from c.rs, c.rs imports D from d.rs, d.rs imports B, b, f from b.rs";
    assert_eq!(circles(&Crate::read("lib.rs", &read).imports()), [expected]);
}

#[test]
fn files_that_share_a_circle_are_named_too() {
    let import = |from: &str, to: &str| ((from.to_owned(), to.to_owned()), BTreeSet::from([to.to_uppercase()]));
    let imports =
        Imports::from([("a", "b"), ("b", "c"), ("c", "a"), ("b", "a"), ("c", "d")].map(|(a, b)| import(a, b)));
    assert_eq!(circles(&imports), ["a imports B from b, b imports A from a, and c is in a circle with them"]);
}

/// Fails with a sentence for each circle of the crates with these roots.
fn assert_no_circle(roots: &[&str]) {
    let folder = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let folder = Path::new(&folder);
    let read = |path: &str| fs::read_to_string(folder.join(path)).ok();
    let of = |root: &&str| {
        let imports = Crate::read(root, &read).imports();
        assert!(!imports.is_empty(), "{root} and its modules import nothing");
        circles(&imports)
    };
    let circles: Vec<String> = roots.iter().flat_map(of).collect();
    assert!(circles.is_empty(), "files that import one another:\n{}", circles.join("\n"));
}

/// A sentence for each set of files that import one another: a shortest circle, and who else belongs to the set.
fn circles(imports: &Imports) -> Vec<String> {
    let graph: DiGraphMap<&str, ()> = imports.keys().map(|(from, to)| (from.as_str(), to.as_str())).collect();
    let sets = tarjan_scc(&graph).into_iter().filter(|files| files.len() > 1);
    let mut sentences: Vec<String> = sets
        .map(|files| {
            // An import out of the set has no way back.
            let imports_of_set = graph.all_edges().filter(|(from, ..)| files.contains(from));
            let ways_back =
                imports_of_set.filter_map(|(from, to, ())| astar(&graph, to, |it| it == from, |_| 1, |_| 0));
            let (_, mut circle) = ways_back.min().expect("files of a set reach each other");
            let first = circle.iter().enumerate().min_by_key(|(_, file)| **file).map_or(0, |(at, _)| at);
            circle.rotate_left(first);
            let each = circle.iter().zip(circle.iter().cycle().skip(1)).map(|(&from, &to)| {
                let names: Vec<&str> = imports[&(from.to_owned(), to.to_owned())].iter().map(String::as_str).collect();
                format!("{from} imports {} from {to}", names.join(", "))
            });
            let mut sentence = each.collect::<Vec<_>>().join(", ");
            let mut others: Vec<&str> = files.iter().copied().filter(|file| !circle.contains(file)).collect();
            others.sort();
            if let Some(verb) = [None, Some("is"), Some("are")][others.len().min(2)] {
                sentence += &format!(", and {} {verb} in a circle with them", others.join(", "));
            }
            sentence
        })
        .collect();
    sentences.sort();
    sentences
}

/// What is named where in the files of a crate.
#[derive(Default)]
struct Crate {
    /// The file of each module.
    modules: BTreeMap<Module, String>,
    uses: Vec<Use>,
    /// Paths in code, with the module in which each stands.
    paths: Vec<(Module, Vec<String>)>,
}

/// One name of a `use` item.
struct Use {
    module: Module,
    path: Vec<String>,
    name: String,
    public: bool,
}

impl Crate {
    /// Reads the root and all modules below it. `read` returns `None` if there is no such file.
    fn read(root: &str, read: &dyn Fn(&str) -> Option<String>) -> Crate {
        let mut found = Crate::default();
        let folder = root.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
        let mut reader = Reader { found: &mut found, read, module: Module::new(), file: root.to_owned(), folder };
        reader.file(&read(root).unwrap_or_else(|| panic!("there is no {root}")));
        found
    }

    fn imports(&self) -> Imports {
        let mut imports = Imports::new();
        let mut add = |from: &Module, path: &[String], reexport: bool| {
            let Some((module, name)) = self.resolve(from, path, 0) else { return };
            let files = (self.modules[from].clone(), self.modules[&module].clone());
            if files.0 != files.1 && !(reexport && module.starts_with(from)) {
                imports.entry(files).or_default().insert(name);
            }
        };
        self.uses.iter().for_each(|it| add(&it.module, &it.path, it.public));
        self.paths.iter().for_each(|(module, path)| add(module, path, false));
        imports
    }

    /// The module of this crate that a path leads to, and what it names there: an item, or the module itself.
    fn resolve(&self, from: &Module, path: &[String], depth: usize) -> Option<(Module, String)> {
        let mut module = from.clone();
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => module.clear(),
            "self" | "super" => {}
            first if self.modules.contains_key(&[&from[..], &[first.to_owned()]].concat()) => {}
            first => {
                // A name that a `use` of this module brings in. The name of another crate may stand for itself.
                let alias =
                    self.uses.iter().find(|it| it.module == *from && it.name == first && it.path[0] != first)?;
                let whole = [&alias.path[..], &path[1..]].concat();
                return if depth < DEEPEST { self.resolve(from, &whole, depth + 1) } else { None };
            }
        }
        while let Some((first, others)) = rest.split_first() {
            match first.as_str() {
                "crate" | "self" => {}
                "super" => drop(module.pop()),
                _ => {
                    module.push(first.clone());
                    if !self.modules.contains_key(&module) {
                        module.pop();
                        let reexport =
                            self.uses.iter().find(|it| it.module.is_empty() && it.public && it.name == *first);
                        return match reexport.filter(|_| module.is_empty() && depth < DEEPEST) {
                            Some(reexport) => self.resolve(&module, &reexport.path, depth + 1),
                            None => Some((module, first.clone())),
                        };
                    }
                }
            }
            rest = others;
        }
        let name = module.last().cloned().unwrap_or_else(|| "crate".to_owned());
        Some((module, name))
    }
}

/// Where the reading of a crate is.
struct Reader<'a> {
    found: &'a mut Crate,
    read: &'a dyn Fn(&str) -> Option<String>,
    module: Module,
    file: String,
    /// Where the files of child modules are.
    folder: String,
}

impl Reader<'_> {
    fn file(&mut self, text: &str) {
        self.found.modules.insert(self.module.clone(), self.file.clone());
        let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{}: {error}", self.file));
        self.visit_file(&file);
    }

    fn path(&mut self, path: Vec<String>) {
        self.found.paths.push((self.module.clone(), path));
    }

    /// The names of a `use` item. `name` is what the path before `tree` brings in.
    fn names(&mut self, tree: &UseTree, mut path: Vec<String>, public: bool) {
        let (last, name) = match tree {
            UseTree::Path(it) => {
                path.push(it.ident.to_string());
                return self.names(&it.tree, path, public);
            }
            UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.names(tree, path.clone(), public));
            }
            UseTree::Name(it) => (it.ident.to_string(), it.ident.to_string()),
            UseTree::Rename(it) => (it.ident.to_string(), it.rename.to_string()),
            UseTree::Glob(_) => ("*".to_owned(), "*".to_owned()),
        };
        // `a::{self}` brings in `a`.
        let name = if name == "self" { path.last().cloned().unwrap_or_default() } else { name };
        path.push(last);
        self.found.uses.push(Use { module: self.module.clone(), path, name, public });
    }

    /// The paths among the tokens of a macro or an attribute.
    fn scan(&mut self, mut rest: Cursor<'_>) {
        let mut path = Vec::new();
        let mut joined = false;
        while !rest.eof() {
            if let Some((ident, after)) = rest.ident() {
                if !joined {
                    self.path(std::mem::take(&mut path));
                }
                path.push(ident.to_string());
                (rest, joined) = (after, false);
                continue;
            }
            joined = false;
            if let Some((inside, _, _, after)) = rest.any_group() {
                self.scan(inside);
                rest = after;
            } else if let Some((_, after)) = rest.punct().filter(|(punct, _)| punct.as_char() == ':') {
                rest = after;
                if let Some((_, after)) = rest.punct().filter(|(punct, _)| punct.as_char() == ':') {
                    (rest, joined) = (after, true);
                }
            } else if let Some((_, after)) = rest.token_tree() {
                rest = after;
            }
        }
        self.path(path);
    }
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes
        .iter()
        .any(|it| it.path().is_ident("cfg") && it.parse_args::<syn::Path>().is_ok_and(|it| it.is_ident("test")))
}

impl<'a> Visit<'a> for Reader<'_> {
    fn visit_item(&mut self, item: &'a Item) {
        let attributes = match item {
            Item::Fn(it) => &it.attrs,
            Item::Impl(it) => &it.attrs,
            Item::Mod(it) => &it.attrs,
            Item::Use(it) => &it.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        if !is_test(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        let name = item.ident.to_string();
        let inner = if self.folder.is_empty() { name.clone() } else { format!("{}/{name}", self.folder) };
        let module = [&self.module[..], &[name]].concat();
        let outer = (self.module.clone(), self.file.clone(), self.folder.clone());
        (self.module, self.folder) = (module, inner.clone());
        if item.content.is_some() {
            self.found.modules.insert(self.module.clone(), self.file.clone());
            visit::visit_item_mod(self, item);
        } else {
            let files = [format!("{inner}.rs"), format!("{inner}/mod.rs")];
            let found = files.into_iter().find_map(|file| Some(((self.read)(&file)?, file)));
            let (text, file) = found.unwrap_or_else(|| panic!("{} has a module {inner} without a file", self.file));
            self.file = file;
            self.file(&text);
        }
        (self.module, self.file, self.folder) = outer;
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        if item.leading_colon.is_none() {
            self.names(&item.tree, Vec::new(), !matches!(item.vis, Visibility::Inherited));
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        if path.leading_colon.is_none() {
            self.path(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'a syn::Macro) {
        self.scan(TokenBuffer::new2(item.tokens.clone()).begin());
        visit::visit_macro(self, item);
    }

    fn visit_meta_list(&mut self, list: &'a syn::MetaList) {
        self.scan(TokenBuffer::new2(list.tokens.clone()).begin());
    }

    /// `pub(super)` names a module, and imports nothing.
    fn visit_visibility(&mut self, _: &'a Visibility) {}
}
