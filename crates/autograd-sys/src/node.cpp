// A node of libtorch's graph whose gradient is a function of the caller.

#include <exception>
#include <memory>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>

namespace {

using torch::autograd::variable_list;

// Takes the gradient at the output and returns that at the input as a tensor of its own, or null after a failure.
using Gradient = at::Tensor *(*)(void *state, at::Tensor *gradient);
using Drop = void (*)(void *state);

struct Node : torch::autograd::Node {
    void *state;
    Gradient gradient;
    Drop drop;

    Node(void *state, Gradient gradient, Drop drop) : state(state), gradient(gradient), drop(drop) {}
    ~Node() override { drop(state); }

    variable_list apply(variable_list &&gradients) override {
        if (!gradients[0].defined())
            return {at::Tensor()};
        std::unique_ptr<at::Tensor> found(gradient(state, new at::Tensor(gradients[0])));
        if (!found)
            throw std::runtime_error("the gradient of a function failed");
        return {*found};
    }
};

}  // namespace

// Makes `output`, which has no history, the result of a function of `input`. False if libtorch refused; the state is dropped in any case.
extern "C" bool attrflow_with_gradient(at::Tensor *input, at::Tensor *output, void *state, Gradient gradient, Drop drop) {
    try {
        auto node = std::make_shared<Node>(state, gradient, drop);
        node->set_next_edges(torch::autograd::collect_next_edges(*input));
        torch::autograd::create_gradient_edge(*output, node);
        return true;
    } catch (const std::exception &) {
        return false;
    }
}
