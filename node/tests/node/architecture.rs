//! Arrows between the modules of the node run one way: a module imports only from modules below it.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules from the floor upwards; those of one row know nothing of each other.
const ROWS: &[&[&str]] = &[
    &["byte_order_mark", "dial", "listening", "supervision", "throttle"],
    &["secret"],
    &["tls"],
    &["flow"],
    &["kafka", "dev_kafka", "life", "template"],
    &["sysmon"],
    &["access"],
    &["mqtt"],
    &["config"],
    &["bridge"],
    &["probe"],
    &["admin"],
    &["operations"],
    &["node"],
    &["dev"],
    &["cli"],
];

/// Arrows that run upwards all the same, each with its reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// Source files below a folder without those of tests.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let is_test = name == "tests" || name == "double" || name == "simulation" || name == "testing";
        if is_test || ["_tests", "_test", "_double", "_simulation"].iter().any(|end| name.ends_with(end)) {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules of this crate that a text names, without its inline tests and comments.
fn imports(text: &str) -> BTreeSet<String> {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let begins_tests = line.trim() == "#[cfg(test)]"
            && lines.peek().is_some_and(|next| next.contains("mod ") && next.trim_end().ends_with('{'));
        if begins_tests {
            break;
        }
        if !line.trim_start().starts_with("//") {
            code.push_str(line);
            code.push('\n');
        }
    }
    let mut found = BTreeSet::new();
    let name_at = |text: &str| -> String {
        text.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect()
    };
    for (at, path) in code.match_indices("crate::") {
        let rest = &code[at + path.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.insert(name_at(rest));
            continue;
        };
        // `use crate::{a::b, c::{d, e}}`: the names at the first level.
        let (mut depth, mut begins) = (0, true);
        for (at, letter) in list.char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                letter if begins && !letter.is_whitespace() => {
                    found.insert(name_at(&list[at..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn arrows_between_modules_run_one_way() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 100, "{} source files below {}", files.len(), root.display());
    let (mut wrong, mut used) = (Vec::new(), BTreeSet::new());
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let module = first.trim_end_matches(".rs").to_owned();
        if module == "lib" || module == "main" {
            continue;
        }
        let Some(from) = row(&module) else {
            wrong.push(format!("{module} has no row here"));
            continue;
        };
        for other in imports(&fs::read_to_string(&file).unwrap()) {
            if other == module {
                continue;
            }
            let exception = EXCEPTIONS.iter().position(|(from, to, _)| *from == module && *to == other);
            match row(&other) {
                // Not a module: an item of the crate's root.
                None => wrong.push(format!("{}: crate::{other} has no row here", relative.display())),
                Some(to) if to < from => {}
                Some(_) if exception.is_some() => used.extend(exception),
                Some(_) => wrong.push(format!(
                    "{}: {module} imports from {other}, which is not below it",
                    relative.display()
                )),
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "arrows that run up:\n{}", wrong.join("\n"));
    assert_eq!(used.len(), EXCEPTIONS.len(), "an exception that is not needed any more");
    assert!(EXCEPTIONS.len() <= 2);
}

#[test]
fn nested_imports_and_inline_tests_are_read_as_rust_reads_them() {
    let text = "use crate::{\n    flow::{Room, Wake},\n    mqtt::x,\n};\n// crate::cli\nlet a = crate::tls::b();\n\
                #[cfg(test)]\nmod tests;\nuse crate::secret::S;\n#[cfg(test)]\nmod more {\n    use crate::node::N;\n}\n";
    let names: Vec<String> = imports(text).into_iter().collect();
    assert_eq!(names, ["flow", "mqtt", "secret", "tls"]);
}
