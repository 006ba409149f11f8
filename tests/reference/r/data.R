# The data sets themselves, so that the tests need neither R nor another package.
args <- commandArgs(FALSE); source(file.path(dirname(sub("^--file=", "", grep("^--file=", args, value = TRUE))), "common.R"))
for (name in names(load_data())) write_fixture(paste0("data_", name), load_data()[[name]])
