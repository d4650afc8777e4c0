/// \file
/// For a frame, a request, a level: a temp arena whose chunks come from a tracked heap. Says when the buffer was too
/// small, and how large it should be.

#include "chain_example.hpp"

#include <vector>

static void draw(pmr_debug::temp_resource_base& frame, int count) {
    const pmr_debug::temp_mark here(frame);
    const std::pmr::vector<int> visible(static_cast<std::size_t>(count), &frame);
}

int main() {
    const chains::report_and_go_on reports;
    pmr_debug::general_purpose_resource heap({.name = "heap"});
    pmr_debug::tracking_resource spills(&heap, {.name = "what did not fit"});
    pmr_debug::temp_resource<1024> frame(&spills, {.name = "frame"});

    for (int count = 100; count <= 500; count += 200) {
        draw(frame, count);
    }
    chains::show(frame);
    frame.write_advice(chains::print, nullptr);
}
