// A global array of the program is overrun, by as many bytes as the first argument says, and what lies behind it is
// whatever the linker put there. "bss", "data": where the array is. Then a block is freed twice.

#include <pmr_debug/pmr_debug.hpp>

#include <unistd.h>

#include <cstdlib>
#include <string>

char zeroed[64];
char initialised[64] = {1};

int main(int count, char** arguments) {
    const std::size_t n = count > 2 ? std::strtoul(arguments[1], nullptr, 0) : 64;
    const bool data = count > 2 && std::string(arguments[2]) == "data";
    pmr_debug::general_purpose_resource heap({.name = "heap"});
    void* const p = heap.allocate(64);
    char* volatile array = data ? initialised : zeroed;
    for (std::size_t i = 0; i < n; ++i) {
        array[64 + i] = 0x41;
    }
    // Not by the C library's output, which may have been overwritten.
    static_cast<void>(!::write(1, "done\n", 5));
    heap.deallocate(p, 64);
    heap.deallocate(p, 64);
}
