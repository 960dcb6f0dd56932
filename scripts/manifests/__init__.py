"""Are the files under deploy/kubernetes right? Renders every overlay and looks at what comes out; starts nothing."""
