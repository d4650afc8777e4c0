# Compiler options, as functions on targets.

include(CheckCXXCompilerFlag)

# Effects: \p target is compiled with the warnings this project keeps to.
function(pmr_debug_set_warnings target)
    target_compile_options(
        ${target} PRIVATE -Wall -Wextra -Wpedantic -Wconversion -Wshadow
                          $<$<BOOL:${PMR_DEBUG_WARNINGS_AS_ERRORS}>:-Werror>)
endfunction()

# Effects: \p target and its users keep frame pointers: other tools' traces need them, ours only in code without unwind
#   tables. Not so with PMR_DEBUG_FRAME_POINTERS off.
function(pmr_debug_keep_frame_pointers target)
    if(NOT PMR_DEBUG_FRAME_POINTERS)
        return()
    endif()
    set(flags -fno-omit-frame-pointer)
    # A leaf's caller is missing from a trace taken in a signal handler unless leaves keep theirs too.
    check_cxx_compiler_flag(-mno-omit-leaf-frame-pointer PMR_DEBUG_HAVE_LEAF_FRAME_POINTER_FLAG)
    if(PMR_DEBUG_HAVE_LEAF_FRAME_POINTER_FLAG)
        list(APPEND flags -mno-omit-leaf-frame-pointer)
    endif()
    # The flags travel to users, whose project may hold other languages and other compilers.
    foreach(language IN ITEMS C CXX)
        target_compile_options(${target} PUBLIC "$<$<COMPILE_LANG_AND_ID:${language},GNU,Clang,AppleClang>:${flags}>")
    endforeach()
endfunction()

# Effects: \p target makes no tail calls: a capture begins with the frame of the entry that leads to it, which is still
#   there then. Nor do its users, unless PMR_DEBUG_SIBLING_CALLS is on: a function that ends in a call of a resource is
#   in that call's trace.
function(pmr_debug_keep_callers target)
    foreach(language IN ITEMS C CXX)
        set(flag "$<$<COMPILE_LANG_AND_ID:${language},GNU,Clang,AppleClang>:-fno-optimize-sibling-calls>")
        target_compile_options(${target} PRIVATE "${flag}")
        if(NOT PMR_DEBUG_SIBLING_CALLS)
            target_compile_options(${target} INTERFACE "${flag}")
        endif()
    endforeach()
endfunction()

# Sanitizers go on every target of this project, and so are no property of one.
if(PMR_DEBUG_SANITIZE)
    list(JOIN PMR_DEBUG_SANITIZE "," sanitizers)
    add_compile_options(-fsanitize=${sanitizers} -fno-sanitize-recover=all)
    add_link_options(-fsanitize=${sanitizers})
endif()

# libFuzzer is guided by the coverage of all that is compiled here. Other engines say by CXXFLAGS what they want.
if(PMR_DEBUG_BUILD_FUZZERS AND PMR_DEBUG_FUZZ_ENGINE STREQUAL "-fsanitize=fuzzer")
    add_compile_options(-fsanitize=fuzzer-no-link)
endif()
