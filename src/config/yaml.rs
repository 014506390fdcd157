//! The text of a YAML file as a tree that knows its lines. Scalars keep their text as written: no
//! `yes` turns into a boolean and no `010` into eight, what a value means is for its key to say.
//! Knows no keys and reads no files. What YAML has beyond that (tags, anchors, aliases, a second
//! document) is refused: here they are globs and negations that lack their quotes.

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

/// A value and the line where it begins, from 1.
#[derive(Debug, PartialEq, Eq)]
pub struct Node {
    pub line: usize,
    pub value: YamlValue,
}

/// What a node holds.
#[derive(Debug, PartialEq, Eq)]
pub enum YamlValue {
    /// Nothing, `~` or `null`.
    Null,
    /// The text of a scalar, without quotes.
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<YamlEntry>),
}

/// A key of a map with its value.
#[derive(Debug, PartialEq, Eq)]
pub struct YamlEntry {
    pub key: String,
    /// The key's line, from 1.
    pub line: usize,
    pub node: Node,
}

/// Why a text is not understood, and the line, from 1. Never repeats a value: it may be secret.
#[derive(Debug, PartialEq, Eq)]
pub struct YamlError {
    pub line: usize,
    pub why: String,
}

/// Parses the one document of `text`; an empty text is a null.
pub fn parse(text: &str) -> Result<Node, YamlError> {
    // With this option an alias reaches `Tree::node`, which says what to do about it.
    let options = granit_parser::options! { emit_unresolved_aliases: true };
    let mut tree = Tree { parser: Parser::new_from_str_with_options(text, options) };
    let mut root = None;
    loop {
        match tree.next()? {
            (Event::StreamEnd, span) => {
                return Ok(root.unwrap_or(Node { line: span.start.line(), value: YamlValue::Null }));
            }
            (Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd, _) => {}
            (_, span) if root.is_some() => {
                return Err(malformed(&span, "a second document"));
            }
            (event, span) => root = Some(tree.node(event, &span)?),
        }
    }
}

struct Tree<'a> {
    parser: Parser<'a, StrInput<'a>>,
}

impl<'a> Tree<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), YamlError> {
        let not_yaml = |error: ScanError| YamlError {
            line: error.marker().line(),
            why: format!("not valid YAML: {}", error.kind()),
        };
        match self.parser.next() {
            Some(event) => event.map_err(not_yaml),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    /// The node that begins with `event`.
    fn node(&mut self, event: Event<'a>, span: &Span) -> Result<Node, YamlError> {
        match &event {
            Event::Scalar(.., tag) | Event::SequenceStart(.., tag) | Event::MappingStart(.., tag) if tag.is_some() => {
                return Err(malformed(span, "what begins with ! must be in quotes"));
            }
            Event::Scalar(_, _, 1.., _) | Event::SequenceStart(_, 1.., _) | Event::MappingStart(_, 1.., _) => {
                return Err(malformed(span, "what begins with & must be in quotes"));
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                return Err(malformed(span, "what begins with * must be in quotes"));
            }
            _ => {}
        }
        let value = match event {
            Event::Scalar(text, style, ..) => match (&*text, style) {
                ("" | "~" | "null", ScalarStyle::Plain) => YamlValue::Null,
                _ => YamlValue::Scalar(text.into_owned()),
            },
            Event::SequenceStart(..) => {
                let mut list = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break YamlValue::List(list),
                        (event, span) => list.push(self.node(event, &span)?),
                    }
                }
            }
            Event::MappingStart(..) => {
                let mut map = Vec::new();
                loop {
                    match self.next()? {
                        (Event::MappingEnd, _) => break YamlValue::Map(map),
                        (event, span) => {
                            let entry = self.entry(event, &span)?;
                            if map.iter().any(|other: &YamlEntry| other.key == entry.key) {
                                let why = format!("{} stands here a second time", entry.key);
                                return Err(malformed(&span, why));
                            }
                            map.push(entry);
                        }
                    }
                }
            }
            _ => return Err(malformed(span, "not valid YAML")),
        };
        Ok(Node { line: span.start.line(), value })
    }

    /// The entry of a map whose key is `event`.
    fn entry(&mut self, event: Event<'a>, span: &Span) -> Result<YamlEntry, YamlError> {
        let Node { line, value: YamlValue::Scalar(key) } = self.node(event, span)? else {
            return Err(malformed(span, "a key must be a name"));
        };
        let (event, span) = self.next()?;
        let node = self.node(event, &span)?;
        Ok(YamlEntry { key, line, node })
    }
}

fn malformed(span: &Span, why: impl Into<String>) -> YamlError {
    YamlError { line: span.start.line(), why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(line: usize, text: &str) -> Node {
        Node { line, value: YamlValue::Scalar(text.into()) }
    }

    /// Prevents scalars from being reinterpreted (`comm: yes`, `comm: 010`) and wrong lines in
    /// errors.
    #[test]
    fn scalars_keep_their_text_and_line() {
        let Ok(Node { value: YamlValue::Map(map), .. }) = parse("a: yes\nb: ['010', 1e3]\n# comment\nc:\nd: \"!x\"\n")
        else {
            panic!("not a map");
        };
        let expected = [
            ("a", 1, YamlValue::Scalar("yes".into())),
            ("b", 2, YamlValue::List(vec![scalar(2, "010"), scalar(2, "1e3")])),
            ("c", 4, YamlValue::Null),
            ("d", 5, YamlValue::Scalar("!x".into())),
        ];
        for (entry, (key, line, value)) in map.iter().zip(expected) {
            assert_eq!((&*entry.key, entry.line), (key, line));
            assert_eq!(entry.node.value, value, "{key}");
        }
        assert_eq!(map.len(), 4);
        assert_eq!(parse("").unwrap().value, YamlValue::Null);
        assert_eq!(parse("# nothing\n---\n").unwrap().value, YamlValue::Null);
    }

    /// Prevents a negation or a glob without quotes from silently becoming a tag, an anchor or an
    /// alias, a key that is given twice from being half ignored, and errors from repeating values.
    #[test]
    fn what_is_not_plain_is_refused() {
        for (text, line, why) in [
            ("queue: !/secret\n", 1, "!"),
            ("queue:\n- '*'\n- !secret\n", 3, "!"),
            ("queue: !a [b]\n", 1, "!"),
            ("comm: *secret\n", 1, "*"),
            ("a: &secret b\n", 1, "&"),
            ("a: 1\nb: 2\na: 3\n", 3, "second time"),
            ("a: 1\n---\nb: 2\n", 3, "second document"),
            ("? [a]\n: b\n", 1, "key"),
            ("a: [secret\n", 1, "not valid YAML"),
            ("a: \"secret\n", 1, "not valid YAML"),
            ("a: secret: b\n", 1, "not valid YAML"),
            ("a: @secret\n", 1, "not valid YAML"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text:?}: {error:?}");
            assert!(error.why.contains(why), "{text:?}: {error:?}");
            assert!(!error.why.contains("secret"), "{text:?}: {error:?}");
        }
    }
}
