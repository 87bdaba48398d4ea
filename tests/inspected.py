"""A text with everything that a page could show wrongly."""

TEXT = "Those who forget nothing know <b>nothing</b> & less. " * 6 + "שלום\t😀 x</script>{{data}}<!--"
