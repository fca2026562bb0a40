package web_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/web"
)

func document(t *testing.T, h http.Handler) *openapi3.T {
	t.Helper()
	_, body := get(t, h, "/api/v1/openapi.json")
	doc, err := openapi3.NewLoader().LoadFromData([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return doc
}

// requests holds, for each path of the document, addresses to ask for.
var requests = map[string][]string{
	"/api/v1/openapi.json":                             {""},
	"/api/v1/health":                                   {""},
	"/api/v1/board":                                    {""},
	"/api/v1/runs":                                     {"", "?composition=acceptance&state=failure&limit=2&tasks=1", "?before=" + string(runIDOf(100)), "?agent=a-3"},
	"/api/v1/runs/{id}":                                {string(runIDOf(128)), string(runIDOf(57))},
	"/api/v1/runs/{id}/attempts":                       {string(runIDOf(128)), string(runIDOf(57))},
	"/api/v1/compositions/{composition}":               {"acceptance"},
	"/api/v1/compositions/{composition}/runs/{number}": {"acceptance 128"},
	"/api/v1/attempts/{id}/log":                        {string(attemptID(100)), string(attemptID(100)) + "?off=40&follow=1"},
	"/api/v1/attempts/{id}/lines":                      {string(attemptID(100)) + "?from=3&n=5", string(attemptID(100)) + "?q=ERROR", string(attemptID(999))},
	"/api/v1/agents":                                   {""},
	"/api/v1/agents/{id}":                              {"a-3"},
	"/api/v1/commits":                                  {"?limit=1"},
	"/api/v1/commits/{sha}":                            {string(shaLive), string(shaBad)},
	"/api/v1/events":                                   {"?after=3&limit=4"},
	"/api/v1/changes":                                  {"", "?branch=feature/louder"},
	"/api/v1/plugins":                                  {""},
	"/api/v1/pools":                                    {""},
	"/api/v1/queue":                                    {"", "?run=" + string(runIDOf(128))},
	"/api/v1/why":                                      {"?run=" + string(runIDOf(128)) + "&task=windows-smoke"},
}

// address fills the words of an entry into a path's parameters.
func address(path, entry string) string {
	words := strings.Fields(entry)
	query := ""
	if len(words) > 0 {
		words[len(words)-1], query, _ = strings.Cut(words[len(words)-1], "?")
	}
	parts := strings.Split(path, "/")
	for i, p := range parts {
		if strings.HasPrefix(p, "{") {
			parts[i], words = words[0], words[1:]
		}
	}
	path = strings.Join(parts, "/")
	if query != "" {
		path += "?" + query
	}
	return path
}

func TestAnswersAreWhatTheDocumentSays(t *testing.T) {
	t.Parallel()
	for name, src := range map[string]*fakeSource{"full": sample(), "empty": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := handler(t, src)
			doc := document(t, h)
			router, err := legacy.NewRouter(doc)
			if err != nil {
				t.Fatal(err)
			}
			for path := range doc.Paths.Map() {
				if len(requests[path]) == 0 {
					t.Errorf("no request is written for %s", path)
				}
				for _, entry := range requests[path] {
					if name == "full" {
						validate(t, h, router, address(path, entry), http.StatusOK)
					} else if !strings.Contains(entry, "follow=1") { // an empty log never ends
						validate(t, h, router, address(path, entry), 0)
					}
				}
			}
		})
	}
}

// validate holds one answer against the document; status 0 takes any that is documented.
func validate(t *testing.T, h http.Handler, router routers.Router, path string, status int) {
	t.Helper()
	req := httptest.NewRequest(http.MethodGet, path, nil)
	route, params, err := router.FindRoute(req)
	if err != nil {
		t.Errorf("%s is not in the document: %v", path, err)
		return
	}
	options := &openapi3filter.Options{IncludeResponseStatus: true, MultiError: true}
	in := &openapi3filter.RequestValidationInput{Request: req, PathParams: params, Route: route, Options: options}
	if err := openapi3filter.ValidateRequest(t.Context(), in); err != nil {
		t.Errorf("%s: request: %v", path, err)
	}
	res, body := get(t, h, path)
	if status != 0 && res.StatusCode != status {
		t.Errorf("%s: status %d\n%s", path, res.StatusCode, body)
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: res.StatusCode, Header: res.Header, Options: options}
	out.SetBodyBytes([]byte(body))
	if strings.HasPrefix(res.Header.Get("Content-Type"), "application/x-ndjson") {
		validateLines(t, route.Spec, body)
		return
	}
	if err := openapi3filter.ValidateResponse(t.Context(), out); err != nil {
		t.Errorf("%s: %v\n%.600s", path, err, body)
	}
}

func validateLines(t *testing.T, doc *openapi3.T, body string) {
	t.Helper()
	for line := range strings.Lines(body) {
		var v any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatal(err)
		}
		if err := doc.Components.Schemas["Change"].Value.VisitJSON(v); err != nil {
			t.Errorf("change %s: %v", line, err)
		}
	}
}

func TestEveryRouteOfTheAPIIsDocumented(t *testing.T) {
	t.Parallel()
	doc := document(t, handler(t, sample()))
	for _, pattern := range web.Patterns() {
		path := strings.TrimPrefix(pattern, "GET ")
		if strings.HasPrefix(path, "/api/") && doc.Paths.Value(path) == nil {
			t.Errorf("%s is served and not documented", path)
		}
	}
	for path := range doc.Paths.Map() {
		if !slices.Contains(web.Patterns(), "GET "+path) {
			t.Errorf("%s is documented and not served", path)
		}
	}
}

func TestErrorsAreProblemsWithTheStatusOfTheirKind(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, path string
		err        error
		status     int
		shown      string
	}{
		{"absent run", "/api/v1/runs/01JNONE", nil, 404, "there is no run 01JNONE"},
		{"malformed id", "/api/v1/runs/..%00", nil, 400, ""},
		{"bad state", "/api/v1/runs?state=green", nil, 400, "green"},
		{"bad number", "/api/v1/runs?limit=0", nil, 400, "from 1 to 200"},
		{"parameter given twice", "/api/v1/runs?state=success&state=failure", nil, 400, "given twice"},
		{"no such path", "/api/v1/nothing", nil, 404, ""},
		{"record away", "/api/v1/board", fault.New(fault.Unavailable, "disk /dev/sda1 is gone"), 503, "Try again"},
		{"bug", "/api/v1/board", errors.New("secret text of a bug"), 500, "request_id"},
		{"invalid", "/api/v1/board", fault.New(fault.Invalid, "that is wrong"), 400, "that is wrong"},
		{"conflict", "/api/v1/board", fault.New(fault.Conflict, "moved"), 409, "moved"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			src := sample()
			src.fail(c.err)
			res, body := get(t, handler(t, src), c.path)
			var p web.Problem
			if err := json.Unmarshal([]byte(body), &p); err != nil {
				t.Fatalf("%v in %s", err, body)
			}
			if res.StatusCode != c.status || p.Status != c.status || res.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("status %d, problem %d, type %s; want %d", res.StatusCode, p.Status, res.Header.Get("Content-Type"), c.status)
			}
			if !strings.Contains(p.Detail, c.shown) || strings.Contains(body, "sda1") || strings.Contains(body, "secret text") {
				t.Errorf("detail %q, want it to say %q and nothing of what lies within", p.Detail, c.shown)
			}
		})
	}
}

func TestRunsArePagedByCursor(t *testing.T) {
	t.Parallel()
	h := handler(t, sample())
	var numbers []int
	for next := pipeline.RunID(""); ; {
		_, body := get(t, h, "/api/v1/runs?composition=acceptance&limit=7&before="+string(next))
		var page struct {
			Runs []pipeline.Run
			Next pipeline.RunID
		}
		if err := json.Unmarshal([]byte(body), &page); err != nil {
			t.Fatal(err)
		}
		for _, run := range page.Runs {
			numbers = append(numbers, run.Number)
		}
		if next = page.Next; next == "" {
			break
		}
	}
	if len(numbers) != 32 || numbers[0] != 128 || numbers[31] != 97 {
		t.Errorf("pages hold %v, want 128 down to 97", numbers)
	}
}

func TestWhySaysWhatThePageSays(t *testing.T) {
	t.Parallel()
	h := handler(t, sample())
	_, body := get(t, h, "/api/v1/why?run="+string(runIDOf(128))+"&task=windows-smoke")
	if !strings.Contains(body, "no agent fits") || !strings.Contains(body, `"blocked":true`) {
		t.Errorf("got %s", body)
	}
	_, body = get(t, h, "/api/v1/why?run="+string(runIDOf(128))+"&task=confirm-deploy")
	if !strings.Contains(body, "waits for acceptance") {
		t.Errorf("got %s", body)
	}
}
