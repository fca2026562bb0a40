package gitrepo

import (
	"context"
	"io"
)

// What parsers of outside input are fuzzed through.

func ParseTree(data []byte) (names []string, err error) {
	entries, err := parseTree(data)
	for _, e := range newListing([20]byte{}, entries).entries {
		names = append(names, e.name)
	}
	return names, err
}

// EncodeParsed parses a tree and writes it again.
func EncodeParsed(data []byte) ([]byte, error) {
	entries, err := parseTree(data)
	return encodeTree(entries), err
}

func ParseCommit(data []byte) (CommitInfo, error) {
	c, err := parseCommit(data)
	return c.CommitInfo, err
}

func CheckPack(ctx context.Context, f io.ReadSeeker, l Limits) error {
	return checkPack(ctx, f, l.withDefaults())
}

func ValidRef(name string) bool { return validRef(name) }

// RefusePrivate is what looks at the address of a connection.
var RefusePrivate = refusePrivate
