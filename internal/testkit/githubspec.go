package testkit

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
)

// githubSpec is GitHub's own description of its API, trimmed to what Maestro calls.
var githubSpec = sync.OnceValues(func() (routers.Router, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(root, "reconciler", "internal", "forge", "testdata", "github-openapi-trimmed.json.gz"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(z)
	if err != nil {
		return nil, err
	}
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		return nil, err
	}
	doc.Servers = nil
	return gorillamux.NewRouter(doc)
})

// described holds one request and its answer to the description.
type described struct {
	in *openapi3filter.RequestValidationInput
}

var describedOptions = &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, MultiError: true, IncludeResponseStatus: true}

// describe finds what GitHub says of a request, and checks it.
func describe(r *http.Request, path string, body []byte) (*described, error) {
	router, err := githubSpec()
	if err != nil {
		return nil, err
	}
	ask := r.Clone(r.Context())
	ask.URL.Path, ask.URL.RawPath = path, ""
	ask.Body = io.NopCloser(bytes.NewReader(body))
	route, params, err := router.FindRoute(ask)
	if err != nil {
		return nil, fmt.Errorf("%s %s is not described: %w", r.Method, path, err)
	}
	d := &described{in: &openapi3filter.RequestValidationInput{Request: ask, PathParams: params, Route: route, Options: describedOptions}}
	if err := openapi3filter.ValidateRequest(r.Context(), d.in); err != nil {
		return nil, fmt.Errorf("%s %s %s is not as described: %w", r.Method, r.URL, body, err)
	}
	return d, nil
}

// answer makes a whole answer of the parts that matter, and checks it.
func (d *described) answer(status int, header http.Header, parts any) ([]byte, error) {
	if parts == nil {
		return nil, nil
	}
	op := d.in.Route.Operation
	res := op.Responses.Status(status)
	if res == nil || res.Value == nil {
		return nil, fmt.Errorf("%s answers no %d", op.OperationID, status)
	}
	media := res.Value.Content.Get("application/json")
	if media == nil {
		return nil, fmt.Errorf("%s answers %d without JSON", op.OperationID, status)
	}
	body, err := json.Marshal(fill(media.Schema, parts, 0))
	if err != nil {
		return nil, err
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: d.in, Status: status, Header: header, Options: describedOptions}
	out.SetBodyBytes(body)
	if err := openapi3filter.ValidateResponse(d.in.Request.Context(), out); err != nil {
		return body, fmt.Errorf("answer of %s is not as described: %w", op.OperationID, err)
	}
	return body, nil
}

// none stands for a value that nobody gave.
type none struct{}

// fill completes a value by a schema: what is required and was not given gets the
// smallest value that fits.
func fill(ref *openapi3.SchemaRef, given any, depth int) any {
	const deepest = 12
	s := ref.Value
	if depth > deepest {
		return nil
	}
	if list, ok := given.([]map[string]any); ok {
		out := make([]any, len(list))
		for i, one := range list {
			out[i] = fill(s.Items, one, depth+1)
		}
		return out
	}
	if m, ok := given.(map[string]any); ok {
		return fillObject(s, m, depth)
	}
	if _, missing := given.(none); !missing {
		return given
	}
	for _, some := range []openapi3.SchemaRefs{s.AnyOf, s.OneOf} {
		if len(some) > 0 && len(s.Properties) == 0 {
			if s.Nullable {
				return nil
			}
			return fill(some[0], given, depth+1)
		}
	}
	switch {
	case s.Nullable:
		return nil
	case len(s.Enum) > 0:
		return s.Enum[0]
	case s.Type.Is("string") && s.Format == "date-time":
		return "2026-01-02T03:04:05Z"
	case s.Type.Is("string") && s.Format == "uri":
		return "https://api.github.com/x"
	case s.Type.Is("string"):
		return "x"
	case s.Type.Is("integer"), s.Type.Is("number"):
		return 1
	case s.Type.Is("boolean"):
		return false
	case s.Type.Is("array"):
		return []any{}
	}
	return fillObject(s, nil, depth)
}

func fillObject(s *openapi3.Schema, given map[string]any, depth int) map[string]any {
	out := map[string]any{}
	for name, v := range given {
		out[name] = v
	}
	for _, part := range append(append(append(openapi3.SchemaRefs{}, s.AllOf...), firstOf(s.AnyOf)...), firstOf(s.OneOf)...) {
		for name, v := range fillObject(part.Value, given, depth) {
			out[name] = v
		}
	}
	for name, p := range s.Properties {
		v, ok := given[name]
		switch {
		case ok:
		case !contains(s.Required, name):
			continue
		case strings.HasSuffix(name, "_at") && !p.Value.Nullable:
			v = "2026-01-02T03:04:05Z" // some are described as any text
		default:
			v = none{}
		}
		out[name] = fill(p, v, depth+1)
	}
	return out
}

func firstOf(list openapi3.SchemaRefs) openapi3.SchemaRefs { return list[:min(1, len(list))] }

func contains(list []string, s string) bool {
	for _, l := range list {
		if strings.EqualFold(l, s) {
			return true
		}
	}
	return false
}
