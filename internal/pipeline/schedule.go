package pipeline

import (
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Schedule is when a cron trigger fires. The zero Schedule never does.
type Schedule struct {
	minutes, hours, days, months, weekdays uint64 // one bit for each value
	// everyHour: the hour is "*", so it fires by time that passes and not by the
	// clock on the wall, which jumps twice a year.
	everyHour bool
	// eitherDay: day of month and day of week are both restricted, and one suffices.
	eitherDay bool
	zone      *time.Location
}

// ParseSchedule reads five fields, minute, hour, day of month, month and day of week
// (0 or 7 is Sunday), each "*", numbers, names, ranges "1-5", steps "*/15" or
// "10-40/10", or a list of those with commas. When both days are restricted, one of
// them suffices. zone is a name of the IANA time zone database, "" for UTC.
func ParseSchedule(text, zone string) (Schedule, error) {
	var s Schedule
	fields := strings.Fields(text)
	if len(fields) != len(cronFields) {
		return s, fmt.Errorf("schedule %q has %d fields, and needs 5: minute, hour, day of month, month, day of week", text, len(fields))
	}
	loc, err := location(zone)
	if err != nil {
		return s, err
	}
	var sets [5]uint64
	for i, f := range cronFields {
		if sets[i], err = f.parse(fields[i]); err != nil {
			return s, fmt.Errorf("schedule %q: %w", text, err)
		}
	}
	if sets[4]&(1<<7) != 0 {
		sets[4] = sets[4]&^(1<<7) | 1
	}
	s = Schedule{
		minutes: sets[0], hours: sets[1], days: sets[2], months: sets[3], weekdays: sets[4], zone: loc,
		everyHour: fields[1] == "*",
		eitherDay: !strings.HasPrefix(fields[2], "*") && !strings.HasPrefix(fields[4], "*"),
	}
	if s.Next(time.Date(2000, 1, 1, 0, 0, 0, 0, loc)).IsZero() {
		return Schedule{}, fmt.Errorf("schedule %q never fires: no such day exists", text)
	}
	return s, nil
}

func location(zone string) (*time.Location, error) {
	if zone == "" || zone == "Local" { // "Local" would depend on the machine
		if zone != "" {
			return nil, fmt.Errorf("time zone %q is not one of the IANA time zone database, such as Europe/Paris", zone)
		}
		return time.UTC, nil
	}
	loc, err := time.LoadLocation(zone)
	if err != nil {
		return nil, fmt.Errorf("time zone %q is not one of the IANA time zone database, such as Europe/Paris", zone)
	}
	return loc, nil
}

// cronField is one of the five.
type cronField struct {
	name     string
	min, max int
	words    []string // names of the values from min
}

var cronFields = [5]cronField{
	{"minute", 0, 59, nil},
	{"hour", 0, 23, nil},
	{"day of month", 1, 31, nil},
	{"month", 1, 12, []string{"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}},
	{"day of week", 0, 7, []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}},
}

func (f *cronField) parse(text string) (set uint64, err error) {
	for _, part := range strings.Split(text, ",") {
		span, stepText, stepped := strings.Cut(part, "/")
		step := 1
		if stepped {
			if step, err = strconv.Atoi(stepText); err != nil || step < 1 || step > f.max {
				return 0, fmt.Errorf("%s %q: the step is not a number from 1 to %d", f.name, part, f.max)
			}
		}
		from, to := f.min, f.max
		if span != "*" {
			first, last, isRange := strings.Cut(span, "-")
			if from, err = f.value(first); err != nil {
				return 0, err
			}
			switch {
			case isRange:
				if to, err = f.value(last); err != nil {
					return 0, err
				}
			case !stepped:
				to = from
			}
		}
		if to < from {
			return 0, fmt.Errorf("%s %q ends before it begins", f.name, part)
		}
		for v := from; v <= to; v += step {
			set |= 1 << v
		}
	}
	return set, nil
}

func (f *cronField) value(text string) (int, error) {
	if i := slices.Index(f.words, strings.ToLower(text)); i >= 0 {
		return f.min + i, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < f.min || n > f.max || strings.HasPrefix(text, "+") {
		return 0, fmt.Errorf("%s %q is not a number from %d to %d", f.name, text, f.min, f.max)
	}
	return n, nil
}

// Next returns the first firing after t, in UTC, and the zero time when there is
// none. A time that the clock on the wall skips fires as soon as it has; one that
// comes twice fires the first time only, unless the schedule says every hour.
func (s Schedule) Next(t time.Time) time.Time {
	if s.zone == nil {
		return time.Time{}
	}
	// 8 years hold every 29 February, and that of 1900 and its like is long past.
	day := t.In(s.zone)
	for range 8*366 + 1 {
		if s.onDay(day) {
			if next := s.nextOn(day, t); !next.IsZero() {
				return next.UTC()
			}
		}
		y, m, d := day.Date()
		day = time.Date(y, m, d+1, 12, 0, 0, 0, s.zone)
	}
	return time.Time{}
}

func (s Schedule) onDay(day time.Time) bool {
	if s.months>>uint(day.Month())&1 == 0 {
		return false
	}
	ofMonth, ofWeek := s.days>>uint(day.Day())&1 == 1, s.weekdays>>uint(day.Weekday())&1 == 1
	if s.eitherDay {
		return ofMonth || ofWeek
	}
	return ofMonth && ofWeek
}

// nextOn returns the first firing on a day that is after t.
func (s Schedule) nextOn(day, t time.Time) time.Time {
	y, m, d := day.Date()
	if s.everyHour {
		return s.nextPassing(time.Date(y, m, d, 0, 0, 0, 0, s.zone), time.Date(y, m, d+1, 0, 0, 0, 0, s.zone), t)
	}
	var first time.Time
	for hours := s.hours; hours != 0; hours &= hours - 1 {
		for minutes := s.minutes; minutes != 0; minutes &= minutes - 1 {
			at := onWall(y, m, d, bits.TrailingZeros64(hours), bits.TrailingZeros64(minutes), s.zone)
			if at.After(t) && (first.IsZero() || at.Before(first)) {
				first = at
			}
		}
		if !first.IsZero() {
			return first
		}
	}
	return first
}

// onWall is the first instant at which clocks show the time, or, when they skip it,
// that time by the clock before the jump. time.Date promises neither.
func onWall(y int, m time.Month, d, hour, minute int, zone *time.Location) time.Time {
	at := time.Date(y, m, d, hour, minute, 0, 0, zone)
	if early := (hour-at.Hour())*60 + minute - at.Minute(); early > 0 && at.Day() == d {
		return at.Add(time.Duration(early) * time.Minute)
	}
	for _, jump := range []time.Duration{time.Hour, 30 * time.Minute} { // half an hour on Lord Howe
		if first := at.Add(-jump); first.Hour() == at.Hour() && first.Minute() == at.Minute() {
			return first
		}
	}
	return at
}

// nextPassing goes through a day minute by minute as time passes.
func (s Schedule) nextPassing(from, to, t time.Time) time.Time {
	if from.Before(t) {
		from = t.Truncate(time.Minute).Add(time.Minute)
	} else if from.Equal(t) {
		from = from.Add(time.Minute)
	}
	for at := from; at.Before(to); at = at.Add(time.Minute) {
		if s.minutes>>uint(at.In(s.zone).Minute())&1 == 1 {
			return at
		}
	}
	return time.Time{}
}

// At reports whether the schedule fires at the minute of t.
func (s Schedule) At(t time.Time) bool {
	t = t.Truncate(time.Minute)
	return s.Next(t.Add(-time.Second)).Equal(t)
}
