//! Templates: texts with places for the fields of a secret, in the syntax of Jinja.
//!
//! Only what a text needs is there: `{{ expression }}`, `if`, `for`, comments, comparisons, the filters of
//! [`Template::FILTERS`] and two tests. No other template and no file is read, nothing is called or assigned, and no
//! arithmetic makes much of little. Whatever is not there is an error where the template is written, not where it is filled in.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use minijinja::machinery::ast::{BinOpKind, CallArg, CompareOp, Expr, Stmt};
use minijinja::machinery::{Span, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;

/// A template whose syntax is right.
#[derive(Clone, PartialEq, Eq)]
pub struct Template(String);

impl Template {
    /// In bytes.
    pub const LONGEST: usize = 16 * 1024;
    /// How often `~` may join texts: each makes a copy.
    pub const MOST_JOINS: usize = 16;
    /// Each but the last two makes a text that injects nothing where its format belongs: a JSON value, a double-quoted YAML
    /// scalar, a value of a dotenv or properties file, a word of a POSIX shell, character data of XML, a component of a URL,
    /// base64. `multiline` lets line breaks through, `trim` takes white space from both ends.
    pub const FILTERS: [&str; 10] = [
        "json",
        "yaml",
        "dotenv",
        "properties",
        "shell",
        "xml",
        "urlencode",
        "base64",
        "multiline",
        "trim",
    ];
    /// Whether there is such a field.
    pub const TESTS: [&str; 2] = ["defined", "undefined"];

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Of all templates: the line feed at the end is part of the text.
    pub fn syntax() -> SyntaxConfig {
        let mut syntax = SyntaxConfig::builder();
        syntax.keep_trailing_newline(true);
        // What is wrong with a configuration are its delimiters, and these are the default ones.
        syntax.build().unwrap_or_default()
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({:?})", self.0)
    }
}

impl FromStr for Template {
    type Err = InvalidTemplate;

    fn from_str(text: &str) -> Result<Self, InvalidTemplate> {
        if text.len() > Self::LONGEST {
            let why = format!(
                "it has {} bytes, and {} is the most",
                text.len(),
                Self::LONGEST
            );
            return Err(InvalidTemplate { at: 0..0, why });
        }
        bounded(text)?;
        let root = parse(text, "template", Self::syntax()).map_err(unreadable)?;
        Check::default().statement(&root)?;
        Ok(Self(text.to_owned()))
    }
}

/// What is wrong with a template, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the template is wrong: {why}")]
pub struct InvalidTemplate {
    /// In bytes of the template.
    pub at: Range<usize>,
    pub why: String,
}

/// How many words and signs may stand between two braces, and how many braces there may be: reading them nests, and takes the
/// stack.
const MOST_TOKENS: usize = 256;
const MOST_PLACES: usize = 512;

fn bounded(text: &str) -> Result<(), InvalidTemplate> {
    let (mut tokens, mut places) = (0, 0);
    for token in tokenize(text, false, Template::syntax()) {
        let (token, span) = token.map_err(unreadable)?;
        tokens += 1;
        if matches!(token, Token::VariableStart | Token::BlockStart) {
            (tokens, places) = (0, places + 1);
        }
        if places > MOST_PLACES {
            let why = format!("it has more than {MOST_PLACES} places and statements");
            return Check::refuse(span, why);
        }
        if tokens > MOST_TOKENS {
            let why = format!("it has more than {MOST_TOKENS} words and signs between two braces");
            return Check::refuse(span, why);
        }
    }
    Ok(())
}

fn unreadable(error: minijinja::Error) -> InvalidTemplate {
    InvalidTemplate {
        at: error.range().unwrap_or(0..0),
        why: error.detail().unwrap_or("it cannot be read").to_owned(),
    }
}

/// Walks over a template.
#[derive(Default)]
struct Check {
    joins: usize,
    depth: usize,
}

/// How far expressions may be nested, a chain of filters or operators counted: reading them takes the stack.
const DEEPEST: usize = 100;

impl Check {
    fn refuse(span: Span, why: impl Into<String>) -> Result<(), InvalidTemplate> {
        let offset = |offset: u32| usize::try_from(offset).unwrap_or(usize::MAX);
        Err(InvalidTemplate {
            at: offset(span.start_offset)..offset(span.end_offset),
            why: why.into(),
        })
    }

    fn statements(&mut self, statements: &[Stmt<'_>]) -> Result<(), InvalidTemplate> {
        statements
            .iter()
            .try_for_each(|statement| self.statement(statement))
    }

    fn statement(&mut self, statement: &Stmt<'_>) -> Result<(), InvalidTemplate> {
        let span = match statement {
            Stmt::Template(template) => return self.statements(&template.children),
            Stmt::EmitRaw(_) => return Ok(()),
            Stmt::EmitExpr(emit) => return self.expression(&emit.expr),
            Stmt::IfCond(condition) => {
                self.expression(&condition.expr)?;
                self.statements(&condition.true_body)?;
                return self.statements(&condition.false_body);
            }
            Stmt::ForLoop(each) if !each.recursive => {
                self.expression(&each.target)?;
                self.expression(&each.iter)?;
                self.maybe(each.filter_expr.as_ref())?;
                self.statements(&each.body)?;
                return self.statements(&each.else_body);
            }
            Stmt::ForLoop(each) => each.span(),
            Stmt::WithBlock(block) => block.span(),
            Stmt::Set(set) => set.span(),
            Stmt::SetBlock(set) => set.span(),
            Stmt::AutoEscape(block) => block.span(),
            Stmt::FilterBlock(block) => block.span(),
            Stmt::Do(call) => call.span(),
        };
        Self::refuse(
            span,
            "of the statements of Jinja there are `if` and `for` without `recursive`",
        )
    }

    fn maybe(&mut self, expression: Option<&Expr<'_>>) -> Result<(), InvalidTemplate> {
        expression.map_or(Ok(()), |expression| self.expression(expression))
    }

    fn expressions<'e, 's: 'e>(
        &mut self,
        expressions: impl IntoIterator<Item = &'e Expr<'s>>,
    ) -> Result<(), InvalidTemplate> {
        let mut expressions = expressions.into_iter();
        expressions.try_for_each(|expression| self.expression(expression))
    }

    fn expression(&mut self, expression: &Expr<'_>) -> Result<(), InvalidTemplate> {
        if self.depth == DEEPEST {
            let why = format!("an expression is nested at most {DEEPEST} deep");
            return Self::refuse(expression.span(), why);
        }
        self.depth += 1;
        let checked = self.part(expression);
        self.depth -= 1;
        checked
    }

    fn part(&mut self, expression: &Expr<'_>) -> Result<(), InvalidTemplate> {
        match expression {
            Expr::Var(_) | Expr::Const(_) => Ok(()),
            Expr::Slice(slice) => {
                self.expression(&slice.expr)?;
                let bounds = [&slice.start, &slice.stop, &slice.step];
                self.expressions(bounds.into_iter().flatten())
            }
            Expr::UnaryOp(operation) => self.expression(&operation.expr),
            Expr::BinOp(operation) => {
                self.operator(operation.op, expression.span())?;
                self.expressions([&operation.left, &operation.right])
            }
            Expr::Compare(compare) => {
                self.expression(&compare.expr)?;
                let right = |compared: &CompareOp<'_>| self.expression(&compared.expr);
                compare.ops.iter().try_for_each(right)
            }
            Expr::IfExpr(choice) => {
                let Some(otherwise) = &choice.false_expr else {
                    let why = "`… if …` needs an `else`: what there is otherwise is not guessed";
                    return Self::refuse(choice.span(), why);
                };
                self.expressions([&choice.test_expr, &choice.true_expr, otherwise])
            }
            Expr::Filter(filter) => {
                let known = Template::FILTERS.contains(&filter.name);
                self.known(filter.span(), "filter", filter.name, known, &filter.args)?;
                self.maybe(filter.expr.as_ref())
            }
            Expr::Test(test) => {
                let known = Template::TESTS.contains(&test.name);
                self.known(test.span(), "test", test.name, known, &test.args)?;
                self.expression(&test.expr)
            }
            Expr::GetAttr(attribute) => self.expression(&attribute.expr),
            Expr::GetItem(item) => self.expressions([&item.expr, &item.subscript_expr]),
            Expr::Call(call) => {
                Self::refuse(call.span(), "there is no function that it could call")
            }
            Expr::List(list) => self.expressions(&list.items),
            Expr::Tuple(tuple) => self.expressions(&tuple.items),
            Expr::Map(map) => {
                self.expressions(&map.keys)?;
                self.expressions(&map.values)
            }
        }
    }

    fn known(
        &self,
        span: Span,
        what: &str,
        name: &str,
        known: bool,
        arguments: &[CallArg<'_>],
    ) -> Result<(), InvalidTemplate> {
        if !known {
            return Self::refuse(span, format!("there is no {what} `{name}`"));
        }
        if !arguments.is_empty() {
            return Self::refuse(span, format!("the {what} `{name}` takes no arguments"));
        }
        Ok(())
    }

    fn operator(&mut self, operator: BinOpKind, span: Span) -> Result<(), InvalidTemplate> {
        match operator {
            BinOpKind::Eq
            | BinOpKind::Ne
            | BinOpKind::Lt
            | BinOpKind::Lte
            | BinOpKind::Gt
            | BinOpKind::Gte
            | BinOpKind::ScAnd
            | BinOpKind::ScOr
            | BinOpKind::In => Ok(()),
            BinOpKind::Concat if self.joins < Template::MOST_JOINS => {
                self.joins += 1;
                Ok(())
            }
            BinOpKind::Concat => {
                let why = format!("`~` joins at most {} times", Template::MOST_JOINS);
                Self::refuse(span, why)
            }
            BinOpKind::Add
            | BinOpKind::Sub
            | BinOpKind::Mul
            | BinOpKind::Div
            | BinOpKind::FloorDiv
            | BinOpKind::Rem
            | BinOpKind::Pow => Self::refuse(span, "it does not calculate; `~` joins texts"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str, why: &str, at: &str) {
        let error = text.parse::<Template>().unwrap_err();
        assert!(error.why.contains(why), "{text}: {error}");
        let found = text.get(error.at.clone()).unwrap();
        assert!(found.contains(at), "{text}: {found:?}");
    }

    #[test]
    fn what_a_text_needs_is_there() {
        for text in [
            "",
            "plain {not} a place\n",
            "postgres://{{ username | urlencode }}:{{ password | urlencode }}@db/x",
            "{% if tls is defined %}{{ tls.ca | multiline }}{% else %}none{% endif %}",
            "{% for host in hosts if host != \"\" %}{{ loop.index }}={{ host | json }}\n{% endfor %}",
            "{{ fields[\"ca-chain\"][0] | trim | base64 }}{# a comment #}",
            "{{ (user ~ \":\" ~ password) | base64 }}",
            "{{ \"a\" if port == 5432 and not (x is undefined) else \"b\" }}",
        ] {
            text.parse::<Template>().unwrap();
        }
        let every = Template::FILTERS.map(|filter| format!("{{{{ x | {filter} }}}}"));
        every.concat().parse::<Template>().unwrap();
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        refused("a {{ password }", "", "");
        refused("ok\n{{ a | jsn }}", "no filter `jsn`", "jsn");
        refused("{{ a is nice }}", "no test `nice`", "nice");
        refused("{{ a | json(1) }}", "no arguments", "json");
        refused("{% endfor %}", "", "");
        refused("{{ a if b }}", "`else`", "a if b");
    }

    /// Other templates, files, code, and what makes much of little.
    #[test]
    fn attack_a_template_reaches_nothing_but_the_secret() {
        for text in [
            "{% include '/etc/passwd' %}",
            "{% import 'x' as y %}",
            "{% from 'x' import y %}",
            "{% extends 'x' %}",
            "{% block x %}{% endblock %}",
            "{% macro x() %}{% endmacro %}",
            "{% set x = value %}",
            "{% set x %}{{ value }}{% endset %}",
            "{% with x = value %}{% endwith %}",
            "{% do value() %}",
            "{% filter json %}x{% endfilter %}",
            "{% autoescape true %}{% endautoescape %}",
            "{% for x in y recursive %}{{ loop(x) }}{% endfor %}",
            "{{ range(1000000) }}",
            "{{ value.upper() }}",
            "{{ debug() }}",
            "{{ value * 1000000 }}",
            "{{ 9 ** 9 }}",
            "{{ value + value }}",
            "{{ value | safe }}",
            "{{ value | escape }}",
            "{{ value is defined(1) }}",
        ] {
            assert!(text.parse::<Template>().is_err(), "{text}");
        }
        let joined = |times: usize| format!("{{{{ a{} }}}}", " ~ a".repeat(times));
        assert!(joined(Template::MOST_JOINS).parse::<Template>().is_ok());
        assert!(
            joined(Template::MOST_JOINS + 1)
                .parse::<Template>()
                .is_err()
        );
        let long = "x".repeat(Template::LONGEST);
        assert!(long.parse::<Template>().is_ok());
        assert!(format!("{long}x").parse::<Template>().is_err());
        let deep = format!("{{{{ {}a{} }}}}", "(".repeat(4000), ")".repeat(4000));
        assert!(deep.parse::<Template>().is_err());
        // As deep as it may be: it is read, and that ends no process.
        let most = format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(500));
        most.parse::<Template>().unwrap();
        for deep in [
            format!("{{{{ {}a }}}}", "not ".repeat(4000)),
            format!("{{{{ a{} }}}}", "|json".repeat(3000)),
            format!("{{{{ a{} }}}}", " and a".repeat(2700)),
            "{% if a %}".repeat(1600),
            format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(1300)),
        ] {
            assert!(deep.parse::<Template>().is_err());
        }
    }
}
