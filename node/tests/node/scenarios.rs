//! `tests/SCENARIOS.md` tells the truth: its tests exist and say which scenario they are about.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::path::Path;

/// A row of the tables.
struct Row {
    id: String,
    tests: Vec<String>,
    remarks: String,
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn rows(page: &str) -> Vec<Row> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let rows =
        page.lines().filter(|line| line.starts_with("| ") && line.contains(|c: char| c.is_ascii_digit()));
    rows.map(|line| {
        let cells = cells(line);
        let [id, _, tests, remarks] = &cells[..] else { panic!("not four cells: {line}") };
        let tests = tests.split(", ").filter(|test| !test.is_empty()).map(|test| {
            let name = test.strip_prefix('`').and_then(|test| test.strip_suffix('`'));
            name.unwrap_or_else(|| panic!("{id}: {test} is not in backquotes")).to_owned()
        });
        Row { id: id.clone(), tests: tests.collect(), remarks: remarks.clone() }
    })
    .collect()
}

/// Whether this source has that function, with a comment above it that names the scenario.
fn check(source: &str, function: &str, id: &str) -> Result<(), String> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let begins = |line: &str| {
        let line = line.trim_start_matches("pub ").trim_start_matches("async ");
        line.strip_prefix("fn ")
            .and_then(|rest| rest.strip_prefix(function))
            .is_some_and(|rest| rest.starts_with('('))
    };
    let at = lines.iter().position(|line| begins(line)).ok_or("there is no such function")?;
    let above = lines[..at].iter().rev().take_while(|line| line.starts_with("///") || line.starts_with("#["));
    let named = above
        .filter(|line| line.starts_with("///"))
        .any(|line| line.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == id));
    if named { Ok(()) } else { Err(format!("no comment above it names {id}")) }
}

#[test]
fn every_scenario_has_a_test_that_exists_or_a_reason() {
    let page = std::fs::read_to_string(root().join("tests/SCENARIOS.md")).unwrap();
    let rows = rows(&page);
    let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
    let wanted: Vec<String> = [('P', 25), ('L', 25), ('W', 18)]
        .into_iter()
        .flat_map(|(letter, most)| (1..=most).map(move |number| format!("{letter}{number}")))
        .collect();
    assert_eq!(ids, wanted);
    let mut wrong = Vec::new();
    for row in &rows {
        let excused = row.remarks.starts_with("Not yet") || row.remarks.starts_with("Left out");
        if row.tests.is_empty() && !excused {
            wrong.push(format!("{}: no test, and no reason", row.id));
        }
        for test in &row.tests {
            let found =
                test.split_once("::").ok_or("not FILE::FUNCTION".to_owned()).and_then(|(file, function)| {
                    let source =
                        std::fs::read_to_string(root().join(file)).map_err(|error| error.to_string())?;
                    check(&source, function, &row.id)
                });
            if let Err(error) = found {
                wrong.push(format!("{}: {test}: {error}", row.id));
            }
        }
    }
    assert!(wrong.is_empty(), "in tests/SCENARIOS.md:\n{}", wrong.join("\n"));
}

#[test]
fn a_name_that_is_only_the_beginning_of_another_or_has_no_mark_is_noticed() {
    let source = "/// P1, P20\n#[test]\nasync fn one_and_two() {}\nfn three() {}";
    assert!(check(source, "one_and_two", "P1").is_ok() && check(source, "one_and_two", "P20").is_ok());
    for (function, id) in [("one_and", "P1"), ("one_and_two", "P2"), ("three", "P1"), ("four", "P1")] {
        assert!(check(source, function, id).is_err(), "{function} {id}");
    }
}
