// Package loop is where facts become decisions and decisions become records. Runs
// drives every unfinished run: it takes what agents say, asks engine and place what
// follows, writes that in one transaction, and only then acts on it. Commits does
// the same for repositories: a ref that moved becomes an evaluated commit, its
// verdicts and its runs.
//
// Both are level-triggered: what arrives is only a reason to look, and everything
// that a crash may have cut off is found again at the next start or the next
// connection. Neither knows a socket, a Git object or a CUE value: those come
// through the small interfaces declared here, and SQL through store.
package loop
