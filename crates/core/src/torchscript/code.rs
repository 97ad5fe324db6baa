//! What the code of a TorchScript file does, as far as it can be seen without running it.
//!
//! Types of attributes are fixed in TorchScript, so the tree of modules with all parameters and buffers can be read off
//! the classes. What is kept between calls is a parameter, a buffer, or an attribute: attributes that can change, and
//! assignments to any, are refused here; parameters and buffers are watched where the module runs.

use super::archive::ByName;
use super::text::{Line, SourceFile, Token, written};
use super::{BUFFERS, EVAL_STEP, ModuleError, TRAINING_STEP};
use std::collections::{BTreeMap, BTreeSet};

/// Most modules in one.
const MAX_MODULES: usize = 100_000;

/// The code of a file, looked through.
#[derive(Debug)]
pub(super) struct Program {
    /// All parameters by their full names, but for those that may be `None`.
    pub(super) parameters: Vec<String>,
    /// All buffers, likewise.
    pub(super) buffers: Vec<String>,
}

/// A class that is a module.
#[derive(Debug, Default)]
struct Class {
    parameters: BTreeSet<String>,
    buffers: BTreeSet<String>,
    /// Names and types.
    attributes: Vec<(String, Vec<Token>)>,
    methods: BTreeSet<String>,
}

/// Operations whose training flag tracing freezes, and where among the arguments that stands.
const FLAGS: [(&str, usize); 11] = [
    ("dropout", 2),
    ("dropout_", 2),
    ("native_dropout", 2),
    ("feature_dropout", 2),
    ("feature_dropout_", 2),
    ("alpha_dropout", 2),
    ("alpha_dropout_", 2),
    ("feature_alpha_dropout", 2),
    ("rrelu", 3),
    ("lstm", 6),
    ("gru", 6),
];

/// Names of libtorch's that reach beyond arithmetic: files, and tensors behind autograd's back.
const FORBIDDEN: [&str; 8] = [
    "from_file",
    "save",
    "load",
    "data",
    "set_",
    "set_data",
    "variable_data",
    "_unsafe_preserve_version_counter",
];

/// Types of which a value never changes.
const CONSTANT: [&str; 13] = [
    "int",
    "float",
    "bool",
    "str",
    "complex",
    "NoneType",
    "Optional",
    "Tuple",
    "Final",
    "Device",
    "Generator",
    "number",
    "Union",
];

impl Program {
    /// Looks through all code; `root` is the class of the module itself.
    ///
    /// # Errors
    /// [`ModuleError`]: what is not to be trained with.
    pub(super) fn of(files: Vec<SourceFile>, root: String) -> Result<Self, ModuleError> {
        let mut classes = BTreeMap::new();
        for file in &files {
            read_classes(file, &mut classes)?;
        }
        for file in &files {
            check_calls(file)?;
            check_assignments(file)?;
        }
        let read = names_read(&files);
        for (name, class) in &classes {
            check_attributes(name, class, &classes, &read)?;
        }
        let of_root = classes.get(&root).ok_or_else(|| {
            ModuleError::Inconsistent(format!(
                "its data is of the class {root:.100}, and its code has no such module"
            ))
        })?;
        for method in [TRAINING_STEP, EVAL_STEP, BUFFERS] {
            if !of_root.methods.contains(method) {
                return Err(ModuleError::NotExported(format!("method {method}")));
            }
        }
        let mut program = Self { parameters: vec![], buffers: vec![] };
        let mut left = MAX_MODULES;
        program.walk(&root, "", &classes, &mut left, 0)?;
        Ok(program)
    }

    fn walk(
        &mut self,
        class: &str,
        prefix: &str,
        classes: &ByName<Class>,
        left: &mut usize,
        depth: usize,
    ) -> Result<(), ModuleError> {
        *left = left.checked_sub(1).filter(|_| depth < 100).ok_or_else(|| {
            ModuleError::TooLarge(format!(
                "over {MAX_MODULES} modules in one, or modules in each other without end"
            ))
        })?;
        let class = &classes[class];
        for (name, kind) in &class.attributes {
            let full = format!("{prefix}{name}");
            if is_tensor(kind) && class.parameters.contains(name) {
                self.parameters.push(full);
            } else if is_tensor(kind) && class.buffers.contains(name) {
                self.buffers.push(full);
            } else if let Some(inner) = qualified(kind).filter(|inner| classes.contains_key(inner)) {
                self.walk(&inner, &format!("{full}."), classes, left, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// The modules among the classes of a file.
fn read_classes(file: &SourceFile, classes: &mut ByName<Class>) -> Result<(), ModuleError> {
    let mut lines = file.lines.iter().peekable();
    while let Some(line) = lines.next() {
        let [Token::Word(word), Token::Word(name), open, base, ..] = &line.tokens[..] else { continue };
        if word != "class" || !open.is("(") || !base.is_word("Module") {
            continue;
        }
        let mut class = Class::default();
        while let Some(member) = lines.next_if(|member| member.indent > line.indent) {
            if member.indent == line.indent + 2 {
                class.member(member);
            }
        }
        let name = format!("{}.{name}", file.module);
        if classes.insert(name.clone(), class).is_some() {
            return Err(ModuleError::Inconsistent(format!("its code has two classes {name:.100}")));
        }
    }
    Ok(())
}

impl Class {
    fn member(&mut self, line: &Line) {
        let texts = || {
            line.tokens.iter().filter_map(|token| match token {
                Token::Text(text) => Some(text.clone()),
                _ => None,
            })
        };
        match &line.tokens[..] {
            [Token::Word(def), Token::Word(name), ..] if def == "def" => {
                self.methods.insert(name.clone());
            }
            [Token::Word(name), sign, ..] if name == "__parameters__" && sign.is("=") => {
                self.parameters = texts().collect()
            }
            [Token::Word(name), sign, ..] if name == "__buffers__" && sign.is("=") => {
                self.buffers = texts().collect()
            }
            [Token::Word(name), open, Token::Text(key), close, sign, kind @ ..]
                if name == "__annotations__" && open.is("[") && close.is("]") && sign.is("=") =>
            {
                self.attributes.push((key.clone(), kind.to_vec()));
            }
            [Token::Word(name), colon, kind @ ..] if colon.is(":") => {
                let kind = kind.split(|token| token.is("=")).next().unwrap_or_default();
                self.attributes.push((name.clone(), kind.to_vec()));
            }
            _ => {}
        }
    }
}

fn is_tensor(kind: &[Token]) -> bool {
    matches!(kind, [Token::Word(word)] if word == "Tensor")
}

/// The name of the class that a type is.
fn qualified(kind: &[Token]) -> Option<String> {
    let mut name = String::new();
    for token in kind {
        match token {
            Token::Word(word) => name.push_str(word),
            dot if dot.is(".") => name.push('.'),
            _ => return None,
        }
    }
    Some(name)
}

/// The names after a dot, and those that `getattr` asks for: all attributes that are ever read are among them.
fn names_read(files: &[SourceFile]) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for tokens in files.iter().flat_map(|file| &file.lines).map(|line| &line.tokens) {
        let asks = tokens.iter().any(|token| token.is_word("getattr"));
        for (i, token) in tokens.iter().enumerate() {
            match token {
                Token::Word(word) if i > 0 && tokens[i - 1].is(".") => {
                    names.insert(word.as_str());
                }
                Token::Text(text) if asks => {
                    names.insert(text.as_str());
                }
                _ => {}
            }
        }
    }
    names
}

/// Refuses attributes that could carry something from one call to the next, where they are read at all.
fn check_attributes(
    class: &str,
    of: &Class,
    classes: &ByName<Class>,
    read: &BTreeSet<&str>,
) -> Result<(), ModuleError> {
    for (name, kind) in &of.attributes {
        let registered = of.parameters.contains(name) || of.buffers.contains(name);
        let tensor = |token: &Token| {
            matches!(token.word(), Some("Tensor" | "Optional" | "NoneType")) || token.is("[") || token.is("]")
        };
        if registered && kind.iter().all(tensor) {
            continue;
        }
        if qualified(kind).is_some_and(|inner| classes.contains_key(&inner)) {
            continue;
        }
        let constant = kind.iter().all(|token| match token {
            Token::Word(word) => CONSTANT.contains(&word.as_str()),
            other => ["[", "]", ","].iter().any(|sign| other.is(sign)),
        });
        if !constant && read.contains(name.as_str()) {
            let kind = written(kind);
            let hint = match class.contains(".nn.modules.rnn.") {
                true => {
                    " (torch.nn's recurrent layers keep their weights twice: write the layer with nn.LSTMCell, nn.GRUCell or \
                         nn.RNNCell, or take the built-in kinds lstm and gru)"
                }
                false => "",
            };
            return Err(ModuleError::Keeps(format!(
                "{class} has the attribute {name} of type {kind:.100}{hint}"
            )));
        }
    }
    Ok(())
}

/// Refuses assignments to attributes: only classes that are no modules may set their own.
fn check_assignments(file: &SourceFile) -> Result<(), ModuleError> {
    let mut in_other_class = false;
    for line in &file.lines {
        let tokens = &line.tokens;
        if line.indent == 0 {
            in_other_class =
                tokens[0].is_word("class") && !tokens.iter().any(|token| token.is_word("Module"));
        }
        let target = match (line.target(), &tokens[0]) {
            (Some(_), first) if line.indent == 2 && first.is_word("__annotations__") => continue,
            (Some(target), _) => target,
            // What a loop runs over, and what a block is entered as, is assigned to.
            (None, first) if first.is_word("for") => {
                tokens[1..].split(|token| token.is_word("in")).next().unwrap_or_default()
            }
            (None, first) if first.is_word("with") => {
                tokens.splitn(2, |token| token.is_word("as")).nth(1).unwrap_or_default()
            }
            _ => continue,
        };
        // Up to a declared type.
        let target = target.split(|token| token.is(":")).next().unwrap_or_default();
        let own = in_other_class
            && matches!(target, [own, dot, Token::Word(_)] if own.is_word("self") && dot.is("."));
        if target.iter().any(|token| token.is(".") || token.is("[")) && !own {
            let target = written(target);
            return Err(ModuleError::Keeps(format!("{} assigns to {target:.100}", file.module)));
        }
    }
    Ok(())
}

/// Refuses calls by their names: batch normalisation, what tracing leaves, what is no arithmetic.
fn check_calls(file: &SourceFile) -> Result<(), ModuleError> {
    for tokens in file.lines.iter().map(|line| &line.tokens) {
        for (i, token) in tokens.iter().enumerate() {
            let Some(name) = token.word() else { continue };
            if name.contains("batch_norm") {
                return Err(ModuleError::BatchNorm(format!("{name} in {}", file.module)));
            }
            if name == "argument_1" || name == "_convolution" {
                return Err(ModuleError::Traced(format!("{} has {name}", file.module)));
            }
            let [.., before, dot] = &tokens[..i] else { continue };
            if !dot.is(".") {
                continue;
            }
            let of_ops = i >= 4 && tokens[i - 4].is_word("ops") && tokens[i - 3].is(".");
            if of_ops && !matches!(before.word(), Some("prim" | "aten")) {
                return Err(ModuleError::Forbidden(format!(
                    "the operator {}.{name}",
                    before.word().unwrap_or_default()
                )));
            }
            if !(before.is_word("torch") && !(i >= 3 && tokens[i - 3].is(".")) || of_ops) {
                continue;
            }
            if FORBIDDEN.contains(&name) {
                return Err(ModuleError::Forbidden(format!("{name} in {}", file.module)));
            }
            if let Some((_, flag)) = FLAGS.iter().find(|(operation, _)| *operation == name)
                && let Some([argument]) = argument(&tokens[i + 1..], *flag)
                && matches!(argument.word(), Some("True" | "False"))
            {
                let value = argument.word().unwrap_or_default();
                return Err(ModuleError::Traced(format!(
                    "{name} in {} has the literal {value} for self.training",
                    file.module
                )));
            }
        }
    }
    Ok(())
}

/// An argument of a call, counted from 0; `tokens` begin with the bracket.
fn argument(tokens: &[Token], wanted: usize) -> Option<&[Token]> {
    let (mut depth, mut found, mut start) = (0, 0, 1);
    for (i, token) in tokens.iter().enumerate() {
        depth += token.deeper();
        let ends = depth == 0 || depth == 1 && token.is(",");
        if ends {
            if found == wanted {
                return tokens.get(start..i);
            }
            (found, start) = (found + 1, i + 1);
        }
        if depth == 0 {
            return None;
        }
    }
    None
}
