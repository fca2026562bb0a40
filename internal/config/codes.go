package config

// Codes of diagnostics. They are stable: people search for them, and a code is
// never reused for another mistake.
const (
	// The commit and its files.
	codeNoOps       = "RC0001" // ops.cue is missing
	codeNoModule    = "RC0002" // cue.mod/module.cue is missing or unreadable
	codeFileName    = "RC0003" // a file or directory name is refused
	codeUnreadable  = "RC0004" // a file cannot be read: symlink, submodule, too large
	codeLimit       = "RC0005" // evaluation used up its time or memory
	codeBudget      = "RC0006" // the commit used up its time
	codeVendored    = "RC0007" // the vendored schema differs
	codePackage     = "RC0008" // a file is in the wrong package
	codeTooMany     = "RC0009" // too many files, bytes or tasks
	codeUnsupported = "RC0010" // an attribute of CUE that is not supported

	// The text.
	codeSyntax      = "RC0100"
	codeReference   = "RC0101" // a name that nothing declares
	codeImport      = "RC0102"
	codeUnused      = "RC0103"
	codeTopLevel    = "RC0104"
	codeName        = "RC0105"
	codeBrokenDep   = "RC0106" // it imports something that has errors
	codeValue       = "RC0107" // a value that the schema or a manifest does not allow
	codeField       = "RC0108" // a field that the schema or a manifest does not have
	codeRequired    = "RC0109"
	codeNotInstance = "RC0110" // a task that is no instance of a plugin's definition
	codePluginTask  = "RC0112"
	codeTooLate     = "RC0113" // must be known when the commit is planned
	codeTaskSet     = "RC0114" // the set of tasks depends on what is known later
	codeTemplate    = "RC0115" // text that looks like a reference or a type
	codeInjection   = "RC0116" // text from outside becomes a part of a script
	codeEvaluate    = "RC0199"

	// The graph and the context.
	codeNeeds      = "RC0201"
	codeTaskRef    = "RC0202"
	codeOutputRef  = "RC0203"
	codeCycle      = "RC0204"
	codeNoProvider = "RC0205"
	codeNotOrdered = "RC0206"
	codeMaySkip    = "RC0207"
	codeAmbiguous  = "RC0208"
	codeEdgeType   = "RC0209"
	codeUnproved   = "RC0210"
	codeParamRef   = "RC0211"
	codeSibling    = "RC0212" // a task named without tasks.
	codeShadow     = "RC0214" // a name that something nearer hides
	codeOther      = "RC0213" // another composition's tasks or params

	// The repository as a whole, and where tasks may run.
	codeSecret      = "RC0301"
	codePool        = "RC0302"
	codeRequirement = "RC0303"
	codeNoAgent     = "RC0304"
	codePin         = "RC0305"
	codeDuplicate   = "RC0306"
	codeIdle        = "RC0307" // nothing starts a composition
	codeSourceRepo  = "RC0308" // a trigger on a repository that is not declared
	codeAddress     = "RC0309" // an address of a source repository that is refused
	codeSealed      = "RC0310" // an encrypted file that a secret cannot be read from
	codeStranger    = "RC0311" // an encrypted file that somebody unknown can open

	// Compositions that name each other, and the policy.
	codeCall     = "RC0501" // a composition that there is not
	codeCallGive = "RC0502" // what is given to it
	codeCallRead = "RC0503" // what is read of it
	codeCallLoop = "RC0504" // compositions that call each other in a circle
	codePolicy   = "RC0505" // what the policy says of what there is not
	codeForbid   = "RC0506" // what the policy does not allow
	codeOwners   = "RC0507" // owners that the policy asks for and CODEOWNERS does not name

	// Manifests and declared outputs.
	codeOutputForm = "RC0401"
	codeTypeForm   = "RC0402"
	codeManifest   = "RC0403"
	codeAttribute  = "RC0404"
	codeProgram    = "RC0405" // a program that is not in the plugin's folder
)
