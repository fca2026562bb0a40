package web

// Patterns returns the patterns of all routes, for the tests that walk them.
func Patterns() []string {
	s := &server{}
	var list []string
	for _, r := range s.routes() {
		list = append(list, r.pattern)
	}
	return list
}

// Patience and the number of streams, for the tests of slow clients.
const MostStreams = mostStreams
