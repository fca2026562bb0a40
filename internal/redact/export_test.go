package redact

// Forms is what New masks of a value.
func Forms(value string) []string { return forms(value) }
