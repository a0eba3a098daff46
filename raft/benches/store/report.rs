//! Rows: a figure beside its bound, and beside what the machine gives without us.

/// One figure.
pub struct Row {
    pub what: String,
    pub figure: f64,
    pub unit: &'static str,
    pub bound: Option<Bound>,
    /// How the figure stands to which raw one.
    pub ratio: Option<(f64, &'static str)>,
    /// More about it.
    pub note: String,
}

#[derive(Clone, Copy)]
pub enum Bound {
    AtLeast(f64),
    Below(f64),
}

impl Row {
    pub fn new(what: impl Into<String>, figure: f64, unit: &'static str) -> Self {
        Self { what: what.into(), figure, unit, bound: None, ratio: None, note: String::new() }
    }

    pub fn bound(mut self, bound: Bound) -> Self {
        self.bound = Some(bound);
        self
    }

    pub fn ratio(mut self, raw: f64, of: &'static str) -> Self {
        self.ratio = Some((self.figure / raw, of));
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    pub fn missed(&self) -> bool {
        match self.bound {
            Some(Bound::AtLeast(least)) => self.figure < least,
            Some(Bound::Below(most)) => self.figure >= most,
            None => false,
        }
    }

    pub fn text(&self) -> String {
        let bound = match self.bound {
            Some(Bound::AtLeast(n)) => format!(">= {}", short(n)),
            Some(Bound::Below(n)) => format!("< {}", short(n)),
            None => String::new(),
        };
        let verdict = match (self.bound.is_some(), self.missed()) {
            (false, _) => "",
            (true, false) => "met",
            (true, true) => "MISSED",
        };
        let ratio = self.ratio.map_or(String::new(), |(ratio, of)| format!("{ratio:.2} x {of}"));
        let (figure, unit) = (short(self.figure), self.unit);
        format!("{:44} {figure:>9} {unit:8} {bound:>10} {verdict:6}  {ratio:34} {}", self.what, self.note)
    }

    pub fn json(&self) -> String {
        let bound = match self.bound {
            Some(Bound::AtLeast(n)) => format!(r#","at_least":{n}"#),
            Some(Bound::Below(n)) => format!(r#","below":{n}"#),
            None => String::new(),
        };
        let ratio = self.ratio.map_or(String::new(), |(ratio, of)| format!(r#","ratio":{ratio:.4},"of":"{of}""#));
        let head = format!(r#""what":"{}","figure":{:.3},"unit":"{}""#, self.what, self.figure, self.unit);
        format!(r#"{{{head}{bound}{ratio},"missed":{},"note":"{}"}}"#, self.missed(), self.note)
    }
}

fn short(n: f64) -> String {
    if n >= 100.0 { format!("{n:.0}") } else { format!("{n:.3}") }
}
