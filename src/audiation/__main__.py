from audiation.cli import main

main()
