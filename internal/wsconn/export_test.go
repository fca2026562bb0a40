package wsconn

// Cut closes the socket under c without a word, as a crash does.
func Cut(c *Conn) { c.raw.Close() }
