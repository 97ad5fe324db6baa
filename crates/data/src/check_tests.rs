use super::*;
use proptest::prelude::*;

const CONTRACT: &str = r#"
    min_rows = 2
    missing = ["", "?"]
    [label]
    column = "num"
    classes = [{ name = "healthy", values = ["0"] }, { name = "ill", values = ["1", "2"] }]
    [[columns]]
    name = "age"
    kind = "number"
    range = [0, 120]
    [[columns]]
    name = "chol"
    kind = "number"
    range = [50, 700]
    outside = "missing"
    optional = true
    missing = ["0"]
    [[columns]]
    name = "oldpeak"
    kind = "number"
    range = [-5, 5]
    outside = "clamp"
    [[columns]]
    name = "sex"
    kind = "category"
    values = ["Male", "Female"]
"#;

fn contract() -> DataContract {
    toml::from_str(CONTRACT).unwrap()
}

type Rows = Vec<(Vec<Cell>, u32)>;

fn scan_text(text: impl AsRef<[u8]>) -> (DataReport, Rows) {
    let mut rows = Vec::new();
    let report = scan_reader(text.as_ref(), &contract(), |row| {
        let Truth::Class(class) = row.truth else { panic!("a class") };
        rows.push((row.cells.to_vec(), class));
    })
    .unwrap();
    (report, rows)
}

/// The problems of a file with one good row and `row`.
fn problems_of(row: &str) -> Vec<String> {
    scan_text(format!("age,chol,oldpeak,sex,num\n50,200,0,Male,0\n{row}\n")).0.problems
}

#[test]
fn good_rows_are_read_whatever_the_order_of_columns() {
    let text = "\u{feff}id,num, sex ,oldpeak,chol,age,note\r\n\
                1,0,Male,9,0.0, 50 ,\"a, b\"\r\n\
                \r\n\
                2,2.0,Female,-1.5,240,61,\r\n\
                3,1,Male,0,9999,70,x";
    let (report, rows) = scan_text(text);
    assert_eq!(report.problems, Vec::<String>::new());
    assert!(report.is_fit());
    assert_eq!((report.rows, report.class_rows), (3, vec![1, 2]));
    assert_eq!(report.missing, [("chol".to_owned(), 2)]);
    use Cell::*;
    assert_eq!(
        rows,
        [
            (vec![Number(50.0), Missing, Number(5.0), Category(0)], 0),
            (vec![Number(61.0), Number(240.0), Number(-1.5), Category(1)], 1),
            (vec![Number(70.0), Missing, Number(0.0), Category(0)], 1),
        ]
    );
}

#[test]
fn each_problem_names_line_column_value_and_a_way_out() {
    for (row, problem) in [
        (
            "fifty,200,0,Male,0",
            "line 3, column \"age\": \"fifty\" is not a number: correct it or remove the row",
        ),
        (
            "\"50,5\",200,0,Male,0",
            "line 3, column \"age\": \"50,5\" is not a number: write 50.5 with a point",
        ),
        ("NaN,200,0,Male,0", "line 3, column \"age\": \"NaN\" is not a number: correct it or remove the row"),
        ("150,200,0,Male,0", "line 3, column \"age\": 150 is outside 0 to 120: correct it or remove the row"),
        (
            "?,200,0,Male,0",
            "line 3, column \"age\": the value is missing and the job does not allow that: fill it in or remove \
             the row",
        ),
        (
            "50,200,0,male,0",
            "line 3, column \"sex\": \"male\" is none of \"Male\", \"Female\": did you mean \"Male\"?",
        ),
        (
            "50,200,0,x,0",
            "line 3, column \"sex\": \"x\" is none of \"Male\", \"Female\": correct it or remove the row",
        ),
        (
            "50,200,0,Male,7",
            "line 3, column \"num\": label \"7\" is none of \"0\", \"1\", \"2\": correct it or remove the row",
        ),
        ("50,200,0,Male,", "line 3, column \"num\": the label is missing: fill it in or remove the row"),
        (
            "50,200,0,Male",
            "line 3: 4 fields where the header has 5: put quotes around values that hold a comma",
        ),
    ] {
        assert_eq!(problems_of(row), [problem], "{row}");
    }
}

#[test]
fn a_row_with_problems_is_not_taken() {
    let (report, rows) = scan_text("age,chol,oldpeak,sex,num\n50,200,0,Male,0\n150,200,0,Male,7\n");
    assert_eq!(report.problems.len(), 2);
    assert_eq!((report.rows, rows.len()), (1, 1));
}

#[test]
fn a_header_without_a_needed_column_names_the_nearest() {
    let (report, _) = scan_text("age,cholesterol,oldpeak,gender,num\n50,200,0,Male,0\n");
    assert_eq!(
        report.problems,
        [
            "the header has no column \"chol\": is it \"cholesterol\"? Rename it in the header",
            "the header has no column \"sex\": add it, or ask for a job that does without",
        ]
    );
    let (report, _) = scan_text("age,age,chol,oldpeak,sex,num\n");
    assert_eq!(report.problems, ["the header names column \"age\" 2 times: rename all but one"]);
    let (report, _) = scan_text("age;chol;oldpeak;sex;num\n50;200;0;Male;0\n");
    assert_eq!(report.problems.len(), 5);
    assert!(
        report.problems[0].ends_with("separated by ';', save the file with commas"),
        "{:?}",
        report.problems
    );
}

#[test]
fn empty_and_short_files_are_named() {
    let (report, _) = scan_text("");
    assert_eq!(report.problems, ["the file is empty: it needs a header line with the names of the columns"]);
    let (report, _) = scan_text("age,chol,oldpeak,sex,num\n50,200,0,Male,0\n");
    assert_eq!(report.problems, ["too few rows: 1, the job asks for at least 2"]);
    assert!(!report.is_fit());
}

#[test]
fn bytes_that_are_not_utf8_matter_only_where_they_are_read() {
    let (report, _) = scan_text(b"age,chol,oldpeak,sex,num,n\xe9\n50,200,0,Male,0,caf\xe9\n50,2,0,Male,0,\n");
    assert!(report.is_fit(), "{:?}", report.problems);
    let (report, _) = scan_text(b"age,chol,oldpeak,sex,num\n50,200,0,M\xe4le,0\n50,2,0,Male,0\n");
    assert_eq!(
        report.problems,
        ["line 2, column \"sex\": the value is not UTF-8 text: save the file as CSV in UTF-8"]
    );
}

#[test]
fn many_problems_are_counted() {
    let text = format!("age,chol,oldpeak,sex,num\n{}", "150,200,0,Male,0\n".repeat(100));
    let (report, _) = scan_text(text);
    assert_eq!(report.problems.len(), MAX_PROBLEMS + 1);
    assert_eq!(report.problems[MAX_PROBLEMS], format!("and {} more", 100 - MAX_PROBLEMS));
}

proptest! {
    #[test]
    fn any_bytes_after_a_good_header_give_a_report(bytes in proptest::collection::vec(
        prop_oneof![2 => any::<u8>(), 2 => Just(b','), 1 => Just(b'\n'), 1 => Just(b'"'), 2 => b'0'..=b'9'],
        0..300,
    )) {
        let mut text = b"age,chol,oldpeak,sex,num\n".to_vec();
        text.extend(bytes);
        let (report, rows) = scan_text(&text);
        prop_assert_eq!(report.rows as usize, rows.len());
        prop_assert_eq!(report.class_rows.iter().sum::<u64>(), report.rows);
        prop_assert!(report.rows > 1 || !report.is_fit());
    }
}
