//go:build race

package config

// raceEnabled: the race detector's shadow memory exceeds any sensible limit.
const raceEnabled = true
