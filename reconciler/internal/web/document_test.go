package web_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// TestDocumentHasEveryFieldThatIsSent holds the document to the vocabulary: who
// checks answers against it must not be told of a field that it does not have.
func TestDocumentHasEveryFieldThatIsSent(t *testing.T) {
	t.Parallel()
	doc := document(t, handler(t, sample()))
	for name, v := range map[string]any{
		"Run": pipeline.Run{}, "RunTask": pipeline.RunTask{}, "Task": pipeline.Task{}, "Composition": pipeline.Composition{},
		"Event": pipeline.Event{}, "EventPull": pipeline.EventPull{}, "Cause": pipeline.Cause{}, "Expr": pipeline.Expr{}, "Hook": pipeline.Hook{}, "Review": pipeline.Review{},
		"Trigger": pipeline.Trigger{}, "Binding": pipeline.Binding{}, "Attempt": pipeline.Attempt{},
	} {
		schema := doc.Components.Schemas[name].Value
		for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
			tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if tag != "" && tag != "-" && schema.Properties[tag] == nil {
				t.Errorf("%s has no property %q", name, tag)
			}
		}
	}
}
