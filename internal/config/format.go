package config

import (
	"cuelang.org/go/cue/errors"
	"cuelang.org/go/cue/format"
	"cuelang.org/go/cue/parser"

	"github.com/maestro-cd/maestro/internal/fault"
)

// Format lays out a CUE file in the one way that all tools agree on. It changes no
// meaning and keeps comments. name is used in errors; text that is not CUE is
// fault.Invalid with the place of the first mistake.
func Format(name string, text []byte) ([]byte, error) {
	f, err := parser.ParseFile(name, text, parser.ParseComments)
	if err != nil {
		list := errors.Errors(err)
		return nil, fault.New(fault.Invalid, "%s: %s", position(list[0].Position()), list[0].Error())
	}
	out, err := format.Node(f)
	if err != nil {
		return nil, fault.New(fault.Internal, "format %s: %w", name, err)
	}
	return out, nil
}
