# Shared by every script here: the data sets as plain numeric columns, and a writer that keeps 17 significant digits.
suppressPackageStartupMessages(library(survival))
options(digits = 17, warn = 1)

here <- local({
  args <- commandArgs(trailingOnly = FALSE)
  normalizePath(sub("^--file=", "", grep("^--file=", args, value = TRUE)))
})

# JSON with 17 significant digits (jsonlite stops at 15). Scalars without names become numbers, matrices become rows.
json <- function(v) {
  if (is.null(v)) return("null")
  if (is.matrix(v)) return(paste0("[", paste(apply(v, 1, function(r) json(unname(as.list(r)))), collapse = ","), "]"))
  if (is.list(v) || !is.null(names(v))) {
    parts <- vapply(as.list(v), json, "")
    if (is.null(names(v))) return(paste0("[", paste(parts, collapse = ","), "]"))
    return(paste0("{", paste0('"', names(v), '": ', parts, collapse = ",\n"), "}"))
  }
  if (is.character(v)) text <- paste0('"', v, '"')
  else if (is.logical(v)) text <- ifelse(is.na(v), "null", ifelse(v, "true", "false"))
  else text <- ifelse(is.finite(v), sprintf("%.17g", v), "null")
  if (length(v) == 1) text else paste0("[", paste(text, collapse = ","), "]")
}

# One file per script; `value` is a named list.
write_fixture <- function(name, value, packages = "survival") {
  versions <- lapply(setNames(packages, packages), function(p) as.character(packageVersion(p)))
  made_by <- list(script = paste0("tests/reference/r/", basename(here)), r = R.version.string, packages = versions)
  folder <- Sys.getenv("MEDFUSE_FIXTURES", file.path(dirname(dirname(here)), "fixtures"))
  path <- file.path(folder, paste0(name, ".json"))
  writeLines(json(c(list(made_by = made_by), value)), path)
  cat(name, file.size(path), "bytes\n")
}

# Columns of a right-censored or (start, stop] data set: x is a numeric design matrix.
as_data <- function(x, time, event, entry = NULL) {
  x <- as.matrix(x)
  storage.mode(x) <- "double"
  dimnames(x) <- list(NULL, colnames(x))
  c(list(x = x, time = as.numeric(time), event = as.logical(event)),
    if (is.null(entry)) NULL else list(entry = as.numeric(entry)))
}

surv_of <- function(d) if (is.null(d$entry)) Surv(d$time, d$event) else Surv(d$entry, d$time, d$event)

load_data <- function() {
  seven <- c("age", "sex", "ph.ecog", "ph.karno", "pat.karno", "meal.cal", "wt.loss")
  complete <- lung[complete.cases(lung[, c("time", "status", seven)]), ]
  eight <- c("age", "meno", "size", "grade", "nodes", "pgr", "er", "hormon")
  rossi <- carData::Rossi
  yes <- function(f, level) as.numeric(f == level)
  pbc_known <- pbc[complete.cases(pbc[, c("age", "edema", "bili", "protime", "albumin")]), ]
  list(
    lung = as_data(lung[, c("age", "sex")], lung$time, lung$status == 2),
    lung7 = as_data(complete[, seven], complete$time, complete$status == 2),
    veteran = as_data(model.matrix(~ trt + celltype + karno + diagtime + age + prior, veteran)[, -1],
                      veteran$time, veteran$status == 1),
    rossi = as_data(cbind(fin = yes(rossi$fin, "yes"), age = rossi$age, race = yes(rossi$race, "black"),
                          wexp = yes(rossi$wexp, "yes"), mar = yes(rossi$mar, "married"),
                          paro = yes(rossi$paro, "yes"), prio = rossi$prio), rossi$week, rossi$arrest == 1),
    gbsg = as_data(gbsg[, eight], gbsg$rfstime, gbsg$status == 1),
    pbc = as_data(with(pbc_known, cbind(age, edema, bili = log(bili), protime = log(protime), albumin = log(albumin))),
                  pbc_known$time, pbc_known$status == 2),
    heart = as_data(model.matrix(~ age + year + surgery + transplant, heart)[, -1], heart$stop, heart$event == 1,
                    entry = heart$start)
  )
}
