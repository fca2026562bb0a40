package pipeline_test

import (
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func TestScheduleFires(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, schedule, zone, after, want string }{
		{"nightly", "0 2 * * *", "", "2026-03-01T02:00:00Z", "2026-03-02T02:00:00Z"},
		{"the same day", "0 2 * * *", "", "2026-03-01T01:59:59Z", "2026-03-01T02:00:00Z"},
		{"every quarter", "*/15 * * * *", "", "2026-03-01T23:45:10Z", "2026-03-02T00:00:00Z"},
		{"in a zone", "0 2 * * *", "Europe/Paris", "2026-07-01T12:00:00Z", "2026-07-02T00:00:00Z"},
		{"weekdays by name", "30 9 * * mon-fri", "", "2026-03-06T10:00:00Z", "2026-03-09T09:30:00Z"},
		{"seven is Sunday", "0 0 * * 7", "", "2026-03-06T10:00:00Z", "2026-03-08T00:00:00Z"},
		{"either day suffices", "0 0 13 * 5", "", "2026-03-07T00:00:00Z", "2026-03-13T00:00:00Z"},
		{"and the weekday alone", "0 0 13 * 5", "", "2026-03-13T00:00:00Z", "2026-03-20T00:00:00Z"},
		{"leap day", "0 0 29 2 *", "", "2026-03-01T00:00:00Z", "2028-02-29T00:00:00Z"},
		{"a skipped time fires once the clock has jumped", "30 2 * * *", "Europe/Paris", "2026-03-28T12:00:00Z", "2026-03-29T01:30:00Z"},
		{"and west of Greenwich too", "30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", "2026-03-08T07:30:00Z"},
		{"a repeated time fires first", "30 2 * * *", "Europe/Paris", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"},
		{"and not again", "30 2 * * *", "Europe/Paris", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"},
		{"every hour goes on in the repeated hour", "30 * * * *", "Europe/Paris", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"},
		{"list and step", "5,10-20/5 3 * jan *", "", "2026-01-01T03:10:00Z", "2026-01-01T03:15:00Z"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s, err := pipeline.ParseSchedule(tc.schedule, tc.zone)
			if err != nil {
				t.Fatal(err)
			}
			after, _ := time.Parse(time.RFC3339, tc.after)
			if got := s.Next(after).Format(time.RFC3339); got != tc.want {
				t.Errorf("after %s: %s, want %s", tc.after, got, tc.want)
			}
			if at := s.Next(after); !s.At(at) || s.At(at.Add(time.Minute)) && !strings.HasPrefix(tc.schedule, "*") {
				t.Errorf("At and Next disagree about %s", at)
			}
		})
	}
}

func TestScheduleThatIsNoneIsRefusedWithAReason(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ schedule, zone, want string }{
		{"0 2 * *", "", "has 4 fields"},
		{"60 2 * * *", "", `minute "60" is not a number from 0 to 59`},
		{"0 2 30 2 *", "", "never fires"},
		{"0 5-2 * * *", "", "ends before it begins"},
		{"*/0 * * * *", "", "the step"},
		{"0 2 * * *", "Mars/Base", "IANA"},
		{"0 2 * * *", "Local", "IANA"},
		{"+1 2 * * *", "", "minute"},
		{"0 2 * * x", "", "day of week"},
	} {
		_, err := pipeline.ParseSchedule(tc.schedule, tc.zone)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q in %q: %v, want %q", tc.schedule, tc.zone, err, tc.want)
		}
	}
	if !(pipeline.Schedule{}).Next(time.Now()).IsZero() {
		t.Error("the zero schedule fires")
	}
}

func FuzzScheduleNextIsLater(f *testing.F) {
	f.Add("*/7 3-9/2 1,31 feb-dec 0", "America/New_York", int64(1_700_000_000))
	f.Fuzz(func(t *testing.T, text, zone string, at int64) {
		s, err := pipeline.ParseSchedule(text, zone)
		if err != nil {
			return
		}
		after := time.Unix(at%(1<<34), 0)
		if next := s.Next(after); !next.IsZero() && !next.After(after) {
			t.Errorf("%q in %q: %s is not after %s", text, zone, next, after)
		}
	})
}
