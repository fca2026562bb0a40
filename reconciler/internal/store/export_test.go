package store

import (
	"database/sql"
	"testing"
)

// Pragmas returns what the writer and each of the readers, all open at the same
// time, say of the pragmas.
func (db *DB) Pragmas(t *testing.T, names ...string) (writer []string, all [][]string) {
	t.Helper()
	for range readers {
		all = append(all, pragmas(t, db.file.reader, names))
	}
	return pragmas(t, db.file.writer, names), all
}

// pragmas takes a connection for the rest of the test.
func pragmas(t *testing.T, pool *sql.DB, names []string) (values []string) {
	conn, err := pool.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	for _, name := range names {
		var v string
		if err := conn.QueryRowContext(t.Context(), "PRAGMA "+name).Scan(&v); err != nil {
			t.Fatal(name, err)
		}
		values = append(values, v)
	}
	return values
}
