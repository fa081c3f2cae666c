//! Values for statements.

/// An array literal: one parameter for any number of values.
pub fn array<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> String {
    let quoted: Vec<String> = values
        .into_iter()
        .map(|v| {
            format!(
                "\"{}\"",
                v.as_ref().replace('\\', "\\\\").replace('"', "\\\"")
            )
        })
        .collect();
    format!("{{{}}}", quoted.join(","))
}

#[cfg(test)]
mod tests {
    #[test]
    fn arrays_hold_any_text() {
        assert_eq!(
            super::array(["a", "b\"c", "d\\e,f", ""]),
            r#"{"a","b\"c","d\\e,f",""}"#
        );
        assert_eq!(super::array::<&str>([]), "{}");
    }
}
