package runner

// Judge is judge, for tables of what tasks report.
var Judge = judge
