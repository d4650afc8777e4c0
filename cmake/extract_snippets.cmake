# C++ out of documentation, so that a test can compile it.
#
# Taken are, of Markdown files, fenced blocks that begin with ```cpp, and of headers, \code ... \endcode. A block with a
# main() becomes a file of its own. Others are taken for statements: those of one document go into one file, a function
# each, below prelude.hpp and their own #include lines. A line with nothing but "…" stands for something left
# out. Compilers report errors with the document's name and line.

# Effects: appends the code between the next \p open and \p close of \p text, from \p from on, to what was found.
function(pmr_debug_next_snippet text open close)
    set(found FALSE PARENT_SCOPE)
    string(FIND "${text}" "${open}" begin)
    if(begin EQUAL -1)
        return()
    endif()
    string(LENGTH "${open}" length)
    math(EXPR begin "${begin} + ${length}")
    string(SUBSTRING "${text}" 0 ${begin} before)
    string(SUBSTRING "${text}" ${begin} -1 text)
    string(FIND "${text}" "${close}" end)
    if(end EQUAL -1)
        message(FATAL_ERROR "a block of code that begins with ${open} has no end")
    endif()
    string(SUBSTRING "${text}" 0 ${end} code)
    string(SUBSTRING "${text}" ${end} -1 rest)
    # Past the closing line, which may look like an opening one.
    string(LENGTH "${close}" length)
    string(SUBSTRING "${rest}" ${length} -1 after)
    string(REGEX MATCHALL "\n" lines "${before}")
    list(LENGTH lines line)
    string(REGEX MATCHALL "\n" lines "${code}${close}")
    list(LENGTH lines code_lines)

    set(found TRUE PARENT_SCOPE)
    set(code "${code}\n" PARENT_SCOPE)
    set(line ${line} PARENT_SCOPE)             # lines before the code
    set(code_lines ${code_lines} PARENT_SCOPE) # lines up to and with the end of the closing mark
    set(after "${after}" PARENT_SCOPE)
endfunction()

# Effects: writes the snippets of \p document below \p folder, and sets \p out_files to the files written.
function(pmr_debug_extract_snippets document folder out_files)
    file(READ "${document}" text)
    cmake_path(GET document FILENAME name)
    cmake_path(GET document EXTENSION LAST_ONLY extension)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${document}")
    set(own_header "") # what a header shows may use the header
    if(extension STREQUAL ".md")
        set(open "\n```cpp\n")
        set(close "\n```")
    else()
        string(REGEX REPLACE ".*/include/" "" own_header "${document}")
        set(own_header "#include <${own_header}>\n")
        set(open "/// \\code\n")
        set(close "\n/// \\endcode")
    endif()

    set(files "")
    set(includes "")
    set(functions "")
    set(line_before 0)
    set(number 0)
    while(TRUE)
        pmr_debug_next_snippet("${text}" "${open}" "${close}")
        if(NOT found)
            break()
        endif()
        math(EXPR number "${number} + 1")
        math(EXPR first_line "${line_before} + ${line} + 1")
        math(EXPR line_before "${line_before} + ${line} + ${code_lines}")
        set(text "${after}")
        if(NOT extension STREQUAL ".md")
            string(REGEX REPLACE "(^|\n)///" "\\1" code "${code}")
        endif()
        string(REGEX REPLACE "(^|\n)[ ]*…[ ]*\n" "\\1\n" code "${code}")

        if(code MATCHES "int main\\(")
            set(file "${folder}/${name}.${number}.cpp")
            string(CONCAT source "${own_header}" "#line ${first_line} \"${name}\"\n" "${code}")
            file(CONFIGURE OUTPUT "${file}" CONTENT "${source}" @ONLY)
            list(APPEND files "${file}")
            continue()
        endif()
        string(REGEX MATCHALL "#include [^\n]*" lines "${code}")
        list(JOIN lines "\n" lines)
        string(APPEND includes "${lines}\n")
        string(REGEX REPLACE "#include [^\n]*" "" code "${code}")
        string(APPEND functions "void snippet_${number}();\nvoid snippet_${number}() {\n"
                                "#line ${first_line} \"${name}\"\n${code}}\n")
    endwhile()
    if(functions)
        string(REGEX REPLACE "[^A-Za-z0-9]" "_" space "${name}")
        set(file "${folder}/${name}.cpp")
        string(
            CONCAT source "${own_header}#include \"prelude.hpp\"\n"
                   "${includes}\nnamespace ${space} {\n${functions}}\n")
        file(CONFIGURE OUTPUT "${file}" CONTENT "${source}" @ONLY)
        list(APPEND files "${file}")
    endif()
    set(${out_files} ${files} PARENT_SCOPE)
endfunction()
