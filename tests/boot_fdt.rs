//! The walk over a device tree (`src/boot/fdt.rs`), against trees that a library has written.

#[path = "common/tree.rs"]
mod tree;

use std::ffi::CString;

use baton::boot::fdt::{Malformed, Tree, number};
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node, Property};
use proptest::prelude::*;
use tree::{at, machine};

/// A node as the walk hands it out: depth, name, values of the properties.
type Seen = (usize, Vec<u8>, Vec<Vec<u8>>);

fn walk(bytes: &[u8]) -> Result<Vec<Seen>, Malformed> {
    let mut nodes = Tree::parse(bytes)?.nodes();
    let mut seen = Vec::new();
    while let Some(node) = nodes.next()? {
        seen.push((node.depth, node.name.to_vec(), node.properties.map(|property| property.value.to_vec()).collect()));
    }
    Ok(seen)
}

/// The same of the library's tree.
fn expected(node: &DeviceTreeNode, depth: usize, seen: &mut Vec<Seen>) {
    let name = if depth == 0 { "" } else { node.name() };
    seen.push((depth, name.into(), node.properties().map(|property| property.value().to_vec()).collect()));
    for child in node.children() {
        expected(child, depth + 1, seen);
    }
}

fn assert_walked(tree: &DeviceTree) {
    let mut nodes = Vec::new();
    expected(&tree.root, 0, &mut nodes);
    assert_eq!(walk(&tree.to_dtb()), Ok(nodes));
}

#[test]
fn every_node_once_and_in_order() {
    assert_walked(&machine());
}

#[test]
fn properties_by_name() {
    let bytes = machine().to_dtb();
    let mut nodes = Tree::parse(&bytes).expect("it is a device tree").nodes();
    let root = nodes.next().expect("well-formed").expect("there is a root");
    assert_eq!(root.property(c"#address-cells").and_then(number), Some(2));
    // Neither a part of a name nor more than a name is one.
    for name in [c"#address-cell", c"#address-cellss", c"address-cells", c""] {
        assert_eq!(root.property(name), None, "{name:?}");
    }
    let memory = nodes.next().expect("well-formed").expect("there is memory");
    assert_eq!((memory.depth, memory.name, memory.plain_name()), (1, &b"memory@40000000"[..], &b"memory"[..]));
    assert_eq!(memory.property(c"device_type"), Some(&b"memory\0"[..]));
    assert_eq!(memory.property(c"#address-cells"), None, "that is the root's");
}

/// Who edits a tree in place may write over what it takes out.
#[test]
fn what_is_blanked_out_is_not_there() {
    const NOP: [u8; 4] = [0, 0, 0, 4];
    let mut bytes = machine().to_dtb();
    let start = bytes.as_ptr().addr();
    let mut nodes = Tree::parse(&bytes).expect("it is a device tree").nodes();
    let chosen = std::iter::from_fn(|| nodes.next().expect("well-formed")).find(|node| node.name == b"chosen");
    let bootargs = chosen.expect("it has a /chosen").properties.find(|property| property.is(c"bootargs"));
    let part = bootargs.expect("it has bootargs").bytes.as_ptr_range();
    for word in bytes[part.start.addr() - start..part.end.addr() - start].chunks_exact_mut(4) {
        word.copy_from_slice(&NOP);
    }
    let mut tree = machine();
    at(&mut tree, "/chosen").remove_property("bootargs");
    assert_eq!(walk(&bytes), walk(&tree.to_dtb()));
}

#[test]
fn numbers_have_one_or_two_words() {
    assert_eq!(number(&[0, 0, 1, 2]), Some(0x102));
    assert_eq!(number(&[1, 0, 0, 0, 0, 0, 0, 2]), Some(0x0100_0000_0000_0002));
    for bytes in [0, 1, 3, 5, 7, 9, 12] {
        assert_eq!(number(&vec![1; bytes]), None, "{bytes}");
    }
}

#[test]
fn fields_of_the_header() {
    let good = machine().to_dtb();
    assert!(walk(&good).is_ok());
    for (what, at, value) in [
        ("magic", 0, 0xd00d_feee),
        ("structure beyond the end", 8, u32::MAX),
        ("strings beyond the end", 12, u32::MAX),
        ("reservations beyond the end", 16, u32::MAX),
        ("a later format", 24, 18),
        ("too many strings", 32, u32::MAX),
        ("too much structure", 36, u32::MAX),
    ] {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        assert_eq!(walk(&bytes), Err(Malformed), "{what}");
    }
    for size in 0..40 {
        assert_eq!(walk(&good[..size]), Err(Malformed), "{size} bytes of a header");
    }
}

/// A node to be: names and values of its properties, and its children.
#[derive(Clone, Debug)]
struct Sketch {
    properties: Vec<(String, Vec<u8>)>,
    children: Vec<Sketch>,
}

impl Sketch {
    fn draw(&self, node: &mut DeviceTreeNode) {
        for (name, value) in &self.properties {
            node.add_property(DeviceTreeProperty::new_unchecked(name, value.clone()));
        }
        for (index, child) in self.children.iter().enumerate() {
            child.draw(node.add_child_mut(DeviceTreeNode::new_unchecked(format!("child@{index}"))));
        }
    }
}

/// Nodes within nodes, with properties of all sizes.
fn sketches() -> impl Strategy<Value = Sketch> {
    let property = ("[a-z][a-z0-9-]{0,8}", proptest::collection::vec(any::<u8>(), 0..20));
    let properties = proptest::collection::vec(property, 0..4);
    let leaf = properties.clone().prop_map(|properties| Sketch { properties, children: Vec::new() });
    leaf.prop_recursive(4, 24, 4, move |child| {
        let children = proptest::collection::vec(child, 0..4);
        (properties.clone(), children).prop_map(|(properties, children)| Sketch { properties, children })
    })
}

proptest! {
    #[test]
    fn any_tree_is_walked(sketch in sketches()) {
        let mut tree = DeviceTree::new();
        sketch.draw(&mut tree.root);
        assert_walked(&tree);
        let bytes = tree.to_dtb();
        let root = Tree::parse(&bytes).expect("well-formed").nodes().next().expect("well-formed").expect("a root");
        for property in tree.root.properties() {
            let name = CString::new(property.name()).expect("a name without zero bytes");
            prop_assert_eq!(root.property(&name), Some(property.value()));
        }
    }
}
