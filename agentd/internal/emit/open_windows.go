package emit

// noFollow has no equal on Windows, where making a link needs a privilege.
const noFollow = 0
