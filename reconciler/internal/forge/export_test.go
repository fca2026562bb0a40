package forge

// RewriteNote reads the statuses of a note and writes them again.
func RewriteNote(text string) (string, error) { return formatNote(parseNote(text)) }
